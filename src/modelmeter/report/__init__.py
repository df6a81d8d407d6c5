"""Reports: tables, figures and formulas. The only place where units are converted."""
