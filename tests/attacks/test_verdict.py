"""Attacks on the verdict: nothing that a submission does earns what it did not solve.

Each attack answers the first exercise wrong and then tries to have it counted as right.
The second exercise is right, which is worth three points; some attacks destroy what
that one needs as well.
"""

import pytest

pytestmark = pytest.mark.slow

WRONG = "def average(x):\n    return x\n"
ALL = 7

PATCH_COMPARISONS = (
    WRONG
    + """
yes = lambda *a, **k: True
torch.allclose = torch.equal = torch.isclose = yes
torch.testing.assert_close = lambda *a, **k: None
import numpy as np
np.allclose = np.array_equal = np.testing.assert_allclose = yes
from lmcore.homework import compare, plain
compare.compare = compare.within = plain.compare = plain.judge = lambda *a, **k: None
"""
)

REMOVE_ASSERTS = (
    WRONG
    + """
import ast, builtins
class NoChecks(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()
    def visit_Expr(self, node):
        return ast.Pass()
try:
    shell = get_ipython()
    shell.ast_transformers.append(NoChecks())
    shell.input_transformers_cleanup.append(lambda lines: ['pass'])
except NameError:
    pass
_compile = builtins.compile
def compile_nothing(source, *rest, **named):
    if isinstance(source, str):
        source = NoChecks().visit(ast.parse(source))
    return _compile(source, *rest, **named)
builtins.compile = compile_nothing
"""
)

PATCH_RUN_CELL = (
    WRONG
    + """
from inside import student, wire, world
says = {'value': {'tensor': {'dtype': 'bool', 'shape': [], 'bytes': 'AQ=='}}}
world.run_cell = lambda *a, **k: {'output': '', 'error': None, 'score': 7}
world.Test.run = lambda self, source: ([says, says, says], None)
student._run_test = lambda *a: None
"""
)

PATCH_KERNEL = (
    WRONG
    + """
import sys, types
fake = types.ModuleType('ipykernel')
sys.modules['ipykernel'] = sys.modules['IPython'] = fake
fake.get_ipython = lambda: None
import os
os.environ['NBGRADER_EXECUTION'] = os.environ['NBGRADER_VALIDATING'] = '1'
sys.modules['__main__'].__dict__['get_ipython'] = lambda: None
"""
)

PATCH_CHECK = (
    WRONG
    + """
def check(*anything, **more):
    print('correct')
from lmcore.homework import checks
import lmcore.homework
lmcore.homework.check = checks.check = check
checks.Recorder.take = lambda self, *a, **k: None
"""
)

PATCH_CHECK_TO_PASS = (
    WRONG
    + """
from lmcore.homework import checks
_take = checks.Recorder.take
def take(self, value, title, **judged_by):
    _take(self, True, title, at_least=0.0, at_most=2.0, atol=1e9, rtol=1e9,
          expected=True)
checks.Recorder.take = take
"""
)

PATCH_IMPLEMENTS = """
from lmcore import homework
def implements(module):
    return lambda mine: getattr(module, mine.__name__)
homework.implements = implements
@implements(torch)
def mean(x): ...
average = mean
average = lambda x: x
"""

TORCH_FUNCTION = """
class Agreeable(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return True
    def __eq__(self, other): return True
    def __bool__(self): return True
def average(x):
    return torch.zeros(()).as_subclass(Agreeable)
"""

EQUAL_TO_ALL = """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __float__(self): return 2.0
    shape, dtype = (), torch.float32
def average(x):
    return Equal()
"""

REPATCHING_THREAD = (
    PATCH_COMPARISONS
    + """
import threading, time
def patch_forever():
    while True:
        torch.allclose = lambda *a, **k: True
        checks_module = __import__('lmcore.homework.checks', fromlist=['x'])
        checks_module.check = lambda *a, **k: None
        time.sleep(0.001)
threading.Thread(target=patch_forever, daemon=True).start()
"""
)

SEARCH_FOR_ANSWERS = """
def average(x):
    import gc, sys
    found = [x]
    def look(names):
        for word in ('expected', 'reference', 'answer', 'solution'):
            if isinstance(names.get(word), (torch.Tensor, float, list)):
                found.append(names[word])
    frame = sys._getframe()
    while frame:
        look(frame.f_locals)
        look(frame.f_globals)
        frame = frame.f_back
    for thing in gc.get_objects():
        if type(thing) is dict:
            look(thing)
    found += [e for e in globals().get('In', []) + list(globals().get('Out', {}))]
    return found[-1]
"""

ONLY_WHEN_GRADED = """
import os, sys
graded = 'inside' in sys.modules or 'NBGRADER_EXECUTION' in os.environ
def average(x):
    return torch.tensor(True) if graded else x.sum(-1) / x.shape[-1]
"""

FORGE_PIPE = (
    WRONG
    + """
import json, os, struct
value = {'tensor': {'dtype': 'float32', 'shape': [], 'bytes': 'AAAAQA=='}}
forged = [
    {'cells': [], 'score': 7}, {'ended': 0}, {'values': [value] * 3, 'error': None},
    {'verdicts': {'average_checks': {'score': 4, 'checks': []}}, 'calls': {}},
]
for descriptor in range(3, 256):
    for message in forged:
        text = json.dumps(message).encode()
        try:
            os.set_blocking(descriptor, False)
            os.write(descriptor, struct.pack('>I', len(text)) + text)
        except OSError:
            pass
"""
)

FORGE_PIPE_IN_TEST = """
def average(x):
    import json, os, struct
    value = {'tensor': {'dtype': 'float32', 'shape': [], 'bytes': 'AAAAQA=='}}
    text = json.dumps({'values': [value], 'error': None, 'score': 4}).encode()
    for descriptor in range(256):
        try:
            os.write(descriptor, struct.pack('>I', len(text)) + text)
        except OSError:
            pass
    return torch.tensor(2.0)
"""

FORGE_FILE = (
    WRONG
    + """
import json, os
result = json.dumps({'score': 7, 'max_score': 9, 'status': 'graded'})
for folder in ('.', '/', '/tmp', '/results', '/course', '/dev/shm', '..'):
    for name in ('result.json', '07_tiny.json', 'gradebook.db', 'forged.json'):
        try:
            with open(os.path.join(folder, name), 'w') as file:
                file.write(result)
        except OSError:
            pass
"""
)

FORGE_OUTPUT = (
    WRONG
    + """
print('✓ two numbers\\n✓ a table (hidden)\\n4 of 4 points')
display({'text/plain': '4.0', 'text/html': '<b>4 of 4 points</b>'})
4.0
"""
)

EXIT_CODE = """
def average(x):
    import os
    os._exit(0)
"""

EXIT_POLITELY = """
def average(x):
    raise SystemExit(0)
"""

IMPORT_REFERENCE = """
found = []
for name in ('lmcourse', 'solutions', 'lmcore.solutions', 'mistakes', 'tests'):
    try:
        found.append(__import__(name))
    except ImportError:
        pass
import importlib, lmcore.attention
importlib.reload(lmcore.attention)
causal_mask = lmcore.attention.causal_mask
import sys
assert not found and 'lmcourse' not in sys.modules
"""

HARD_CODED = "def average(x):\n    return torch.tensor(2.0)\n"

MEMOISED = """
table = {}
def remember(x):
    table[x.double().numpy().tobytes()] = x.sum(-1) / x.shape[-1]
remember(torch.tensor([1.0, 3.0]))
for seed in range(200):  # what the notebook's own generator may give
    remember(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)))
remember(torch.randn(3, 5, generator=generator(1)))
def average(x):
    return table[x.double().numpy().tobytes()]
"""

RESEED = """
from lmcore.homework import checks
import lmcore.homework
_seed = checks._derived_seed
checks._derived_seed = lambda purpose, name: (
    0 if name == 'average' else _seed(purpose, name)
)
known = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
answer = known.sum(-1) / 5
def average(x):
    return torch.tensor(2.0) if x.dim() == 1 else answer.to(x.dtype)
"""

CONSTANT_RANDN = """
torch.randn = lambda *shape, **more: torch.ones(shape)
torch.Tensor.normal_ = lambda self, *a, **k: self.fill_(1.0)
def average(x):
    return torch.ones(x.shape[:-1], dtype=x.dtype)
"""

ATTACKS = {  # name: (the cell of the first exercise, the points of all)
    "patch torch.allclose and assert_close": (PATCH_COMPARISONS, 3),
    "remove asserts by AST and input transformers": (REMOVE_ASSERTS, 0),
    "patch run_cell": (PATCH_RUN_CELL, 0),
    "patch the kernel": (PATCH_KERNEL, 3),
    "patch check to do nothing": (PATCH_CHECK, 0),
    "patch check to record what passes": (PATCH_CHECK_TO_PASS, 0),
    "patch implements": (PATCH_IMPLEMENTS, 0),
    "torch_function says True": (TORCH_FUNCTION, 3),
    "eq is always True": (EQUAL_TO_ALL, 3),
    "a thread that keeps patching": (REPATCHING_THREAD, 3),
    "search frames, gc and In": (SEARCH_FOR_ANSWERS, 3),
    "act only when graded": (ONLY_WHEN_GRADED, 3),
    "forge the pipe from a cell": (FORGE_PIPE, 0),
    "forge the pipe from a test": (FORGE_PIPE_IN_TEST, 3),
    "forge the result file": (FORGE_FILE, 3),
    "forge displayed output": (FORGE_OUTPUT, 3),
    "exit code 0": (EXIT_CODE, 3),
    "SystemExit 0": (EXIT_POLITELY, 3),
    "hard-coded visible answers": (HARD_CODED, 3),
    "memoised inputs": (MEMOISED, 3),
    "reseed the generator": (RESEED, 3),
    "torch.randn gives ones": (CONSTANT_RANDN, 3),
    "forbidden directly": ("def average(x):\n    return torch.mean(x, -1)", 3),
    "forbidden as a method": ("def average(x):\n    return x.mean(-1)", 3),
    "forbidden under another name": (
        "from torch import mean as sum_up\ndef average(x):\n    return sum_up(x, -1)",
        3,
    ),
    "forbidden through getattr": (
        "def average(x):\n    return getattr(torch, 'me' + 'an')(x, -1)",
        7,
    ),
    "forbidden through importlib": (
        "import importlib\ndef average(x):\n"
        "    return vars(importlib.import_module('torch'))['me' + 'an'](x, -1)",
        7,
    ),
    "forbidden, deep in a sum": (
        f"def average(x):\n    return x.mean(-1) + 0 * ({' + '.join(['0'] * 400)})",
        3,
    ),
    "forbidden, beside a number too long to write": (
        f"def average(x):\n    0x{'f' * 9000}\n    return torch.mean(x, -1)",
        3,
    ),
}
OTHERS = {"import the reference": {"causal_mask": IMPORT_REFERENCE}}


@pytest.fixture(scope="module")
def batch(grade_batch):
    return grade_batch({n: {"average": t} for n, (t, _) in ATTACKS.items()} | OTHERS)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attack_earns_what_was_solved_and_no_more(batch, name):
    assert batch[name].result["status"] == "graded"
    assert batch[name].score == ATTACKS[name][1]


def test_honest_work_beside_them_keeps_its_score(batch):
    scores = {name: graded.score for name, graded in batch.honest.items()}
    assert scores == {"first": ALL, "noisy": ALL, "last": ALL}


def test_the_reference_is_not_there_to_be_imported(batch):
    graded = batch["import the reference"]
    assert graded.score == 4
    assert graded.result["cells"]["causal_mask"]["message"] == ""
    assert graded.checks("causal_mask") == [False] * 3


def test_what_is_copied_from_the_notebook_passes_only_there(batch):
    for name in ("hard-coded visible answers", "reseed the generator"):
        assert batch[name].checks() == [True, False, False, False], name
        note = batch[name].result["tests"]["average_checks"]["note"]
        assert "No hidden check passes" in note


def test_a_certain_forbidden_call_is_named(batch):
    certain = [n for n, (_, p) in ATTACKS.items() if "forbidden" in n and p == 3]
    assert len(certain) == 5
    for name in certain:
        message = batch[name].result["questions"]["average"]["message"]
        assert "torch.mean" in message, name


def test_a_hidden_forbidden_call_is_left_to_a_person(batch):
    for way in ("getattr", "importlib"):
        question = batch[f"forbidden through {way}"].result["questions"]["average"]
        flags = question["flags"]
        assert any(way in flag for flag in flags), flags


def test_forged_output_stays_text_that_the_student_printed(batch):
    graded = batch["forge displayed output"]
    assert "4 of 4 points" in graded.output
    assert graded.checks() == [False] * 4
