"""The proofs against torch: counters on real modules, and the table of `modelmeter validate`.

The only package that imports torch and transformers; installed with the extra `validation`.
"""
