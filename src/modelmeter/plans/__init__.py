"""Plans: a model's requests, parallel forms and devices put before the search of `serving/plan.py`.

`asked.py` makes requests of pages, mixes and traces; `forms.py` says how a replica is spread; `spread.py` asks the
kernels of a form once for all devices; `search.py` plans; `conditions.py` solves for what would have to be true.
"""
