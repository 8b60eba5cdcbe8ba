"""Attacks on the session's own interpreter and on the sandbox's protocol."""

from __future__ import annotations

from tests.sandbox.attacks.attack import Attack

INTERPRETER = [
    Attack(
        "recursion",
        "overflow the stack",
        """
sys.setrecursionlimit(10**9)
def f():
    return f() + 1
f()
""",
    ),
    Attack(
        "recursion in C",
        "overflow it in C code",
        """
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**6):
    x = [x]
repr(x)
""",
    ),
    Attack(
        "exit",
        "end the process",
        """
os._exit(0)
""",
    ),
    Attack(
        "segfault",
        "crash the process",
        """
ctypes.string_at(0)
""",
    ),
    Attack(
        "abort",
        "abort the process",
        """
os.abort()
""",
    ),
    Attack(
        "close everything",
        "close all descriptors",
        """
os.closerange(0, 4096)
""",
    ),
    Attack(
        "forged reply",
        "answer in the sandbox's place",
        """
import json, struct
body = json.dumps({'nonce': '0' * 16, 'status': 'ok', 'interrupted': False}).encode()
for fd in range(3, 1024):
    with contextlib.suppress(OSError):
        os.write(fd, struct.pack('!I', len(body)) + body)
""",
    ),
    Attack(
        "garbage",
        "write to every descriptor",
        """
for fd in range(1024):
    with contextlib.suppress(OSError):
        os.write(fd, os.urandom(5000))
""",
    ),
    Attack(
        "descriptors swapped",
        "send the output into the connection",
        """
for fd in range(3, 1024):
    with contextlib.suppress(OSError):
        os.dup2(1, fd)
print('x' * 100)
""",
    ),
    Attack(
        "descriptor passed on",
        "pass the connection to a program",
        """
for fd in range(3, 1024):
    with contextlib.suppress(OSError):
        os.set_inheritable(fd, True)
kept_child = subprocess.Popen(['sleep', '1000'], close_fds=False)
os._exit(1)
""",
    ),
    Attack(
        "garbage collector",
        "find and break the interpreter's objects",
        """
import gc
for thing in gc.get_objects():
    if type(thing).__module__.startswith('aster'):
        for name in getattr(thing, '__dict__', {}):
            with contextlib.suppress(Exception):
                setattr(thing, name, None)
""",
    ),
    Attack(
        "import hooks",
        "break every import",
        """
class Hook:
    def find_spec(self, *_):
        raise SystemError('no imports')
sys.meta_path.insert(0, Hook())
sys.modules.clear()
""",
        breaks_itself=True,
    ),
    Attack(
        "trace",
        "a trace function that raises",
        """
def tracer(*_):
    raise RuntimeError('traced')
threading.settrace(tracer)
sys.settrace(tracer)
""",
    ),
    Attack(
        "profile",
        "a profile function that never returns",
        """
def profiler(*_):
    while True:
        pass
sys.setprofile(profiler)
""",
    ),
    Attack(
        "builtins",
        "replace the builtins",
        """
import builtins
for name in ('compile', 'eval', 'exec', 'open', 'print', 'len', '__import__', 'isinstance', 'BaseException'):
    setattr(builtins, name, None)
""",
    ),
    Attack(
        "standard library",
        "replace what the sandbox calls",
        """
import json, signal, io
json.loads = json.dumps = os.write = os.read = os.dup2 = signal.signal = lambda *a, **k: 1 / 0
""",
    ),
    Attack(
        "at exit",
        "run for ever at the end",
        """
import atexit
def spin():
    while True:
        pass
atexit.register(spin)
class D:
    def __del__(self):
        spin()
sys.kept = D()
sys.exit()
""",
    ),
    Attack(
        "signal handlers",
        "ignore every signal",
        """
for n in range(1, 65):
    with contextlib.suppress(OSError, ValueError):
        signal.signal(n, signal.SIG_IGN)
while True:
    time.sleep(1)
""",
    ),
    Attack(
        "alarm storm",
        "alarms that raise, after the cell too",
        """
def alarm(*_):
    raise RuntimeError('alarm')
timers = (signal.SIGALRM, signal.ITIMER_REAL), (signal.SIGPROF, signal.ITIMER_PROF), (signal.SIGVTALRM, signal.ITIMER_VIRTUAL)
for n, timer in timers:
    signal.signal(n, alarm)
    signal.setitimer(timer, 0.0005, 0.0005)
""",
    ),
    Attack(
        "swallow",
        "swallow every interrupt",
        """
while True:
    try:
        while True:
            time.sleep(1)
    except BaseException:
        pass
""",
    ),
    Attack(
        "thread that exits",
        "end the process from a thread, later",
        """
threading.Timer(0.05, os._exit, [3]).start()
""",
    ),
    Attack(
        "stop itself",
        "stop instead of ending",
        """
os.kill(os.getpid(), signal.SIGSTOP)
if os.fork() == 0:
    os.kill(os.getppid(), signal.SIGSTOP)
    os._exit(0)
time.sleep(1)
""",
    ),
    Attack(
        "audit hook",
        "a hook that cannot be removed",
        """
sys.addaudithook(lambda *_: 1 / 0)
""",
        breaks_itself=True,
    ),
]
