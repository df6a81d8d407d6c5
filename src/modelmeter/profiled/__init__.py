"""What a profiler recorded beside what is predicted: readers, kinds of operators, the alignment, what comes of it."""
