"""Live figures: they compute in the reader's browser, with or without Python behind.

Chapter 08 of the book. Each figure is an `anywidget.AnyWidget`: Python packs the
numbers and sees what the reader changes, a JavaScript module draws and computes. The
same object is alive in the published page, where there is no Python at all, and in
JupyterLab.

What the JavaScript computes is computed once more here in PyTorch, by functions with
the same job (`explorer.attention_weights`, `steps.attention_steps`); the tests compare
the two.
"""

from lmcore.widgets.explorer import AttentionExplorer
from lmcore.widgets.steps import AttentionSteps

__all__ = ["AttentionExplorer", "AttentionSteps"]
