"""`memext run` as a process: arguments, `__main__`, exit status, signals, tracebacks and child processes are those of
the program. The programs here import no framework, and so no Torch: a run takes a fraction of a second.
"""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PYTHON = [sys.executable]
MEMEXT = [sys.executable, "-m", "shared_core.cli", "run"]
NOTHING = "memext run: this process imported neither SpikingJelly nor snnTorch; nothing was done in it\n"


@pytest.fixture
def program(tmp_path):
    """Writes a program and runs it by Python and by us: (native, ours), each a CompletedProcess."""
    def run(source, *arguments, name="prog.py", before=(), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        target = [*before] if before else [str(path)]
        both = []
        for command in (PYTHON, MEMEXT):
            both.append(subprocess.run([*command, *target, *arguments], cwd=tmp_path, text=True, capture_output=True,
                                       timeout=120, **options))
        return both
    return run


def same(native, ours):
    assert ours.returncode == native.returncode
    assert ours.stdout == native.stdout
    assert ours.stderr == native.stderr + NOTHING


def test_a_program_sees_itself_as_python_runs_it(program):
    native, ours = program("""
        '''Its docstring.'''
        import pickle, sys
        class Thing: pass
        print(sys.argv, __name__, __file__, __doc__, sys.path[0], __spec__, __package__, type(__loader__).__name__)
        print(sys.modules["__main__"].Thing is Thing, type(pickle.loads(pickle.dumps(Thing()))) is Thing)
        print(sorted(name for name in globals() if name != "__annotations__"), "torch" in sys.modules)
        print(sys.stdin.read())
        """, "--epochs", "3", "-m", "x", "--method", "theirs", input="typed in")
    assert "'--method', 'theirs'" in native.stdout and "typed in" in native.stdout
    same(native, ours)


def test_a_module_with_its_package(program, tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "other.py").write_text("name = 'beside it'\n")
    same(*program("""
        import sys
        from .other import name
        print(name, sys.argv, __name__, __package__, __spec__.name, sys.path[0])
        raise ValueError("as a module")
        """, "-b", "2", name="pack/train.py", before=["-m", "pack.train"]))


def test_a_module_that_is_not_there(program):
    native, ours = program("", before=["-m", "no_such_module"])
    assert native.returncode == 1
    same(native, ours)


def test_a_folder_with_a_main(program, tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "beside.py").write_text("name = 'beside it'\n")
    same(*program("""
        import sys
        from beside import name
        print(name, sys.argv, __name__)
        """, "x", name="app/__main__.py", before=["app"]))


@pytest.mark.parametrize("end", ["sys.exit(3)", "sys.exit('a sentence')", "sys.exit()", "raise SystemExit(0)",
                                 "os._exit(7)"])
def test_exit_status(program, end):
    native, ours = program(f"import os, sys, atexit\natexit.register(print, 'at exit')\n{end}\n")
    assert ours.returncode == native.returncode and ours.stdout == native.stdout
    assert ours.stderr == native.stderr + ("" if "_exit" in end else NOTHING)


def test_tracebacks_have_no_frame_of_ours(program):
    native, ours = program("""
        def inner():
            try:
                {}["missing"]
            except KeyError as error:
                raise RuntimeError("outer") from error
        def main():
            try:
                inner()
            finally:
                [].pop()
        main()
        """)
    assert native.stderr.count("Traceback") == 3 and native.returncode == 1
    same(native, ours)


def test_a_syntax_error(program):
    native, ours = program("x = (1,\nprint(x\n")
    assert "SyntaxError" in native.stderr
    same(native, ours)


def test_our_own_error_raised_by_a_program_is_its_own(program):
    native, ours = program("""
        from shared_core.errors import MemextError
        raise MemextError("of the program")
        """)
    assert "Traceback" in native.stderr and native.returncode == 1
    same(native, ours)


def test_the_programs_own_excepthook_and_exception_groups(program):
    same(*program("""
        import sys, traceback
        def hook(kind, error, tb):
            print("hook", kind.__name__, [frame.name for frame in traceback.extract_tb(tb)], tb is error.__traceback__)
        sys.excepthook = hook
        def f():
            raise ExceptionGroup("two", [ValueError(1), TypeError(2)])
        f()
        """))


def test_keyboard_interrupt_ends_it_by_the_signal(program):
    native, ours = program("""
        import atexit, os, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit "ignored"
        atexit.register(print, "at exit")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
        """)
    assert native.returncode == -signal.SIGINT and "KeyboardInterrupt" in native.stderr
    same(native, ours)


def test_sigterm_ends_it_at_once(tmp_path):
    path = tmp_path / "prog.py"
    path.write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen([*MEMEXT, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM and error == ""
    assert time.monotonic() - began < 10  # it does not wait for the sleep


def test_a_handler_of_the_programs_own(program):
    same(*program("""
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(42))
        os.kill(os.getpid(), signal.SIGTERM)
        """))


@pytest.mark.parametrize("start", ["spawn", "fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_processes_that_the_program_starts(program, start):
    native, ours = program(f"""
        import multiprocessing, sys
        class Thing:
            def __init__(self, value): self.value = value
        def work(thing, queue):
            queue.put((thing.value, __name__, sys.argv, type(thing).__module__))
        if __name__ == "__main__":
            context = multiprocessing.get_context({start!r})
            queue = context.Queue()
            process = context.Process(target=work, args=(Thing(3), queue))
            process.start()
            print(queue.get())
            process.join()
            print(process.exitcode)
        """, "x")
    assert "(3, '__m" in native.stdout
    same(native, ours)


def test_an_exception_in_a_child_and_in_a_thread(program):
    same(*program("""
        import multiprocessing, threading
        def work():
            raise ValueError("in here")
        if __name__ == "__main__":
            threading.excepthook = lambda args: print("thread", args.exc_type.__name__)
            thread = threading.Thread(target=work); thread.start(); thread.join()
            process = multiprocessing.get_context("fork").Process(target=lambda: None); process.start(); process.join()
            print(process.exitcode)
        """))


def test_a_closed_stderr_changes_nothing(tmp_path):
    path = tmp_path / "prog.py"
    path.write_text("import sys\nsys.stderr.close()\nsys.exit(5)\n")
    assert subprocess.run([*MEMEXT, str(path)], timeout=60).returncode == 5


def test_other_ranks_say_nothing(tmp_path):
    path = tmp_path / "prog.py"
    path.write_text("print('trained')\n")
    for rank, said in (("0", NOTHING), ("1", "")):
        done = subprocess.run([*MEMEXT, str(path)], env={**os.environ, "RANK": rank}, text=True, capture_output=True)
        assert (done.stdout, done.stderr) == ("trained\n", said)
