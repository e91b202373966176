"""lmcore: a language-model library in plain PyTorch, one module per idea.

Every module belongs to a chapter of *Language Models by Hand* and reads from top to
bottom as the chapter tells it. One alphabet of shapes serves code, book and homework:

    B batch    T tokens (queries)    S source tokens (keys)    C model width
    H heads    D head width          V vocabulary              F feed-forward width
    L layers
"""
