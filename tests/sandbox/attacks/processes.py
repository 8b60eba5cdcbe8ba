"""Attacks with processes, threads and signals."""

from __future__ import annotations

from aster_sandbox.isolation import Level
from tests.sandbox.attacks.attack import Attack

PROCESSES = [
    Attack(
        "fork bomb",
        "fill the process table",
        """
while True:
    with contextlib.suppress(OSError):
        os.fork()
""",
    ),
    Attack(
        "bomb of daemons",
        "fill the process table with processes that have left the session",
        """
while True:
    with contextlib.suppress(OSError):
        if os.fork() == 0:
            leave()
            if os.fork():
                os._exit(0)
            time.sleep(1000)
""",
    ),
    Attack(
        "daemon",
        "leave a process behind that ignores signals",
        """
if os.fork() == 0:
    leave()
    if os.fork() == 0:
        for n in range(1, 32):
            with contextlib.suppress(OSError):
                signal.signal(n, signal.SIG_IGN)
        time.sleep(1000)
    os._exit(0)
""",
    ),
    Attack(
        "children left behind",
        "leave programs running",
        """
kept_children = [subprocess.Popen(['sleep', '1000']) for _ in range(10)]
""",
    ),
    Attack(
        "busy children",
        "take the processor from others for ever",
        """
for _ in range(20):
    if os.fork() == 0:
        while True:
            pass
time.sleep(0.3)
""",
    ),
    Attack(
        "sessions",
        "take a share of the processor for every process: the kernel gives one to each process session",
        """
start = lambda **how: subprocess.Popen(['sleep', '1000'], **how)
if os.fork() == 0:
    attempt(os.setsid)
    os._exit(0)
os.wait()
attempt(lambda: start(start_new_session=True))
sleeper = start(process_group=0)
os.getsid(sleeper.pid) == os.getsid(0) or breached()
sleeper.kill()
print(sleeper.wait())
""",
    ),
    Attack(
        "threads",
        "start threads without end",
        """
while True:
    t = threading.Thread(target=time.sleep, args=[3], daemon=True)
    with contextlib.suppress(RuntimeError):
        t.start()
""",
    ),
    Attack(
        "threads left behind",
        "go on computing after the cell",
        """
def spin():
    while True:
        pass
for _ in range(4):
    threading.Thread(target=spin, daemon=True).start()
""",
    ),
    Attack(
        "exec",
        "become another program",
        """
os.execv('/bin/sleep', ['sleep', '1000'])
""",
    ),
    Attack(
        "kill everybody",
        "kill(-1)",
        """
os.kill(-1, signal.SIGKILL)
""",
        harms_the_user="it signals every process of the user",
    ),
    Attack(
        "kill everybody one by one",
        "kill(1..N)",
        """
for pid in others():
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
""",
        harms_the_user="it signals every process of the user",
    ),
    Attack(
        "stop everybody",
        "SIGSTOP to others",
        """
for pid in others():
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)
""",
        harms_the_user="it signals every process of the user",
    ),
    Attack(
        "signal the supervisor",
        "signal it by its pid and by a pidfd",
        """
attempt(lambda: os.kill(SUPERVISOR, 0) if SUPERVISOR != os.getpid() else 1 / 0)
attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(SUPERVISOR), 0))
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "kill the group",
        "kill its own process group",
        """
os.killpg(0, signal.SIGTERM)
os.killpg(0, signal.SIGHUP)
""",
    ),
    Attack(
        "orphan flood",
        "orphans for whoever reaps",
        """
for _ in range(100):
    if os.fork() == 0:
        try:
            os.fork()
        finally:
            os._exit(0)
    os.wait()
""",
    ),
    Attack(
        "prctl",
        "undo what holds it: dumpable, death signal, no_new_privs",
        """
libc.prctl(4, 1, 0, 0, 0), libc.prctl(1, 0, 0, 0, 0), libc.prctl(36, 1, 0, 0, 0)
libc.prctl(38, 0, 0, 0, 0) == 0 and breached()
if os.fork() == 0:
    leave()
    time.sleep(1000)
""",
    ),
    Attack(
        "become root",
        "setuid(0), su",
        """
attempt(lambda: os.setuid(0))
attempt(lambda: os.setgroups([0]))
attempt(lambda: subprocess.run(['su', '-c', 'id -u'], check=True, capture_output=True, stdin=subprocess.DEVNULL))
""",
    ),
]
