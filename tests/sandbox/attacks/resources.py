"""Attacks on memory, disk, descriptors and time."""

from __future__ import annotations

from aster_sandbox.isolation import Level
from tests.sandbox.attacks.attack import Attack

RESOURCES = [
    Attack(
        "memory bomb",
        "take all memory",
        """
x = []
while True:
    x.append(bytearray(10 << 20))
""",
    ),
    Attack(
        "one large allocation",
        "take it at once",
        """
x = bytearray(1 << 40)
""",
    ),
    Attack(
        "shared memory",
        "memory that belongs to nobody",
        """
import mmap
kept_maps = []
while True:
    kept_maps.append(mmap.mmap(-1, 64 << 20))
    kept_maps[-1].write(bytes(64 << 20))
""",
    ),
    Attack(
        "anonymous files",
        "memory behind descriptors",
        """
files = []
for _ in range(200):
    files.append(os.memfd_create('m'))
    os.write(files[-1], bytes(1 << 20))
breached()
""",
    ),
    Attack(
        "zip bomb",
        "memory from a few bytes",
        """
import zlib
small = zlib.compress(bytes(50 << 20))
x = [zlib.decompress(small) for _ in range(100)]
""",
    ),
    Attack(
        "number bomb",
        "an integer without end",
        """
x = 1 << (1 << 40)
""",
    ),
    Attack(
        "pipes",
        "memory in pipes",
        """
import fcntl
pipes = []
for _ in range(2000):
    pipes.append(os.pipe())
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipes[-1][1], 1031, 1 << 20)
    os.set_blocking(pipes[-1][1], False)
    os.write(pipes[-1][1], bytes(1 << 20))
""",
    ),
    Attack(
        "descriptors",
        "open files without end",
        """
files = []
while True:
    files.append(open('/dev/null'))
""",
    ),
    Attack(
        "disk",
        "fill the disk",
        """
for n in range(64):
    with open(f'file{n}', 'wb') as file:
        file.write(bytes(1 << 20))
breached()
""",
        covered_from=Level.NAMESPACES,
    ),
    Attack(
        "large file",
        "one file without end",
        """
with open('large', 'wb') as file:
    while True:
        file.write(bytes(1 << 20))
""",
    ),
    Attack(
        "sparse file",
        "a file of a terabyte",
        """
with open('sparse', 'wb') as file:
    file.truncate(1 << 40)
breached()
""",
    ),
    Attack(
        "inodes",
        "files without end",
        """
for n in range(3000):
    open(f'i{n}', 'w').close()
breached()
""",
        covered_from=Level.NAMESPACES,
    ),
    Attack(
        "deep directories",
        "a path that nobody can walk",
        """
start = os.getcwd()
for _ in range(1200):
    os.mkdir('d' * 200)
    os.chdir('d' * 200)
os.chdir(start)
""",
        covered_from=Level.NAMESPACES,
    ),
    Attack(
        "closed directories",
        "files that nobody can remove",
        """
os.makedirs('closed/inner')
open('closed/inner/file', 'w').close()
os.chmod('closed/inner', 0)
os.chmod('closed', 0)
os.chmod('.', 0)
with contextlib.suppress(OSError):
    os.chmod('..', 0)
""",
    ),
    Attack(
        "endless output",
        "flood the supervisor",
        """
while True:
    print('x' * 1000)
""",
    ),
    Attack(
        "endless output of a child",
        "flood it from a program",
        """
subprocess.run(['yes'])
""",
    ),
    Attack(
        "fifo",
        "block for ever",
        """
os.mkfifo('fifo')
open('fifo').read()
""",
    ),
    Attack(
        "C loop",
        "compute where no signal is looked at",
        """
sum(range(10**12))
""",
    ),
    Attack(
        "regular expression",
        "compute in the pattern matcher",
        """
import re
re.match(r'(a+)+$', 'a' * 60 + 'b')
""",
    ),
]
