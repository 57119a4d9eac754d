"""Runs a program in a terminal of its own, as a person would, and throws away what it draws.

    in_terminal.py ROWS COLUMNS PROGRAM [ARGUMENT…]

Prints the program's pid. When standard input ends it ends the program and prints how many bytes were drawn.
"""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios


def main():
    rows, columns, *command = sys.argv[1:]
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", int(rows), int(columns), 0, 0))
        os.execvp(command[0], command)
    print(pid, flush=True)
    drawn = 0
    while True:
        ready, _, _ = select.select([terminal, 0], [], [])
        if 0 in ready and not os.read(0, 4096):
            break
        if terminal in ready:
            try:
                piece = os.read(terminal, 1 << 16)
            except OSError:
                piece = b""
            if not piece:
                break
            drawn += len(piece)
    os.kill(pid, signal.SIGTERM)
    # A terminal that nobody reads would keep it from ending.
    while True:
        try:
            if not os.read(terminal, 1 << 16):
                break
        except OSError:
            break
    os.waitpid(pid, 0)
    print(drawn, flush=True)


main()
