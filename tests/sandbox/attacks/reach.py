"""Attacks on the host's files and network."""

from __future__ import annotations

from aster_sandbox.isolation import Level
from tests.sandbox.attacks.attack import Attack

REACH = [
    Attack(
        "secrets",
        "read files of the host",
        """
for path in (SECRET_FILE, HOME_FILE, '/etc/shadow', '/root/.bashrc'):
    attempt(lambda: open(path).read())
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "symbolic link",
        "read through a link",
        """
os.symlink(SECRET_FILE, 'link')
attempt(lambda: open('link').read())
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "link to a directory",
        "walk through a link",
        """
os.symlink('/', 'all')
attempt(lambda: open('all' + SECRET_FILE).read())
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "hard link",
        "take a file by a link",
        """
attempt(lambda: os.link(SECRET_FILE, 'hard'))
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "dots",
        "climb by ..",
        """
attempt(lambda: open('../' * 20 + SECRET_FILE).read())
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "/proc/self/root",
        "the root by another name",
        """
for place in ('/proc/self/root', '/proc/1/root', '/proc/self/cwd/../../..'):
    attempt(lambda: open(place + SECRET_FILE).read())
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "/proc/self/fd",
        "reopen what is open",
        """
for number in range(1024):
    for mode in ('r', 'w'):
        with contextlib.suppress(Exception):
            target = os.readlink(f'/proc/self/fd/{number}')
            if target.startswith('/') and not target.startswith(('/dev/', os.getcwd())):
                breached(target)
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "victim's files",
        "find the files of other sessions",
        """
for top in ('..', '../..', '/tmp'):
    for place, _, names in os.walk(top):
        if 'mine' in names:
            with contextlib.suppress(OSError):
                if open(os.path.join(place, 'mine')).read().startswith('victim '):
                    breached(place)
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "overwrite the package",
        "change the sandbox's own code",
        """
import aster_sandbox.worker as worker
attempt(lambda: open(worker.__file__, 'ab'))
attempt(lambda: open(os.path.join(os.path.dirname(worker.__file__), 'new.py'), 'x'))
""",
        harms_the_user="it makes a file in the package",
    ),
    Attack(
        "overwrite Python",
        "change the interpreter and its libraries",
        """
import numpy
for path in (os.__file__, sys.executable, numpy.__file__, '/usr/bin/env'):
    attempt(lambda: open(path, 'ab'))
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "overwrite /etc",
        "add a user",
        """
for path in ('/etc/passwd', '/etc/ld.so.cache', '/etc/localtime'):
    attempt(lambda: open(path, 'ab'))
""",
        covered_from=Level.LANDLOCK,
    ),
    Attack(
        "remove a file of the host",
        "unlink and rename",
        """
attempt(lambda: os.rename(SECRET_FILE, SECRET_FILE + '.gone'))
attempt(lambda: os.unlink(SECRET_FILE))
""",
        harms_the_user="it removes the file that the test looks at",
    ),
    Attack(
        "rights of a file of the host",
        "chmod, utime, truncate",
        """
for action in (lambda: os.chmod(SECRET_FILE, 0), lambda: os.utime(SECRET_FILE, (0, 0)), lambda: os.truncate(SECRET_FILE, 0)):
    with contextlib.suppress(OSError):
        action()
""",
        harms_the_user="it changes the file that the test looks at",
    ),
    Attack(
        "TCP",
        "connect to the host",
        """
attempt(lambda: socket.create_connection(('127.0.0.1', PORT), 1))
""",
    ),
    Attack(
        "listen",
        "be reached",
        """
attempt(lambda: socket.create_server(('127.0.0.1', 0)))
""",
    ),
    Attack(
        "UDP",
        "send to the host",
        """
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT)))
""",
    ),
    Attack(
        "raw socket",
        "forge packets",
        """
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
""",
    ),
    Attack(
        "netlink",
        "ask the kernel about the network",
        """
attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
""",
    ),
    Attack(
        "virtual machine sockets",
        "reach the hypervisor",
        """
attempt(lambda: socket.socket(40, socket.SOCK_STREAM))
""",
    ),
    Attack(
        "abstract socket",
        "reach a service by an abstract name",
        r"""
attempt(lambda: socket.socket(socket.AF_UNIX).connect('\0' + SOCKET_FILE))
""",
    ),
    Attack(
        "socket file",
        "reach a service by its file",
        """
attempt(lambda: socket.socket(socket.AF_UNIX).connect(SOCKET_FILE))
attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].connect(SOCKET_FILE))
""",
    ),
    Attack(
        "curl",
        "the same from a program",
        """
subprocess.run([sys.executable, '-c', f'import socket; socket.create_connection(("127.0.0.1", {PORT}), 1); print("BREA" "CH")'])
None
""",
    ),
]
