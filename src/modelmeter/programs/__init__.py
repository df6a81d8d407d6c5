"""Programs: from kernels to exact expressions of a few named sizes, and to the costs at a workload."""
