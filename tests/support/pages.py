"""The pages of the project, README.md and docs/, as blocks; and somebody who follows a page to the letter.

A remark right above a block says what is special about it:

    <!-- not run: needs an AWS account -->    its commands are only compared with the command line
    <!-- exits with 1 -->                     it shows a refusal

A remark anywhere in a page says what its folder holds before the first block: <!-- starts with: films, bundle -->
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from filelock import FileLock

ROOT: Final = Path(__file__).parents[2]
RUNNABLE: Final = ("sh", "console", "python")
START: Final = ("films", "film.jpeg")  # where a page says nothing

_BLOCK: Final = re.compile(
    r"^(?:<!-- (?P<remark>[^\n]*?) -->\n+)?(?P<fence>```+|:::+)(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
_STARTS: Final = re.compile(r"<!-- starts with: (.*?) -->")
_SERVE: Final = "chestxray serve"
_ANYTHING: Final = re.escape("...")  # in the output that a page shows


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        kind: what stands behind the fence: "sh", "console", "python", ...
        not_run: why it cannot be run; empty where it can.
        status: that it exits with.
    """

    page: str
    kind: str
    text: str
    not_run: str = ""
    status: int = 0


@dataclass(frozen=True)
class Page:
    name: str
    text: str

    @property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(_block(self.name, found) for found in _BLOCK.finditer(self.text))

    @property
    def to_run(self) -> tuple[Block, ...]:
        return tuple(block for block in self.blocks if block.kind in RUNNABLE and not block.not_run)

    @property
    def starts_with(self) -> tuple[str, ...]:
        found = _STARTS.search(self.text)
        return tuple(found[1].split(", ")) if found else START


def _block(page: str, found: re.Match[str]) -> Block:
    said = found["remark"] or ""
    not_run = said.removeprefix("not run: ") if said.startswith("not run: ") else ""
    status = int(said.removeprefix("exits with ")) if said.startswith("exits with ") else 0
    return Block(page, found["kind"], found["text"], not_run, status)


def pages() -> tuple[Page, ...]:
    """README.md and everything below docs/, in order."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return tuple(Page(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths)


def lines_of(block: Block) -> list[str]:
    """The command lines of a block, each on one line."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.kind == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


OTHER_PROGRAMS: Final = frozenset({"pip", "useradd", "systemctl"})  # they name the package, or a user of that name


def commands_of(block: Block, program: str = "chestxray") -> Iterator[list[str]]:
    """The arguments of every call of a program in a block of commands, wherever in a line it stands."""
    for words in _simple_commands(block):
        if program in words and Path(words[0]).name not in OTHER_PROGRAMS:
            yield words[words.index(program) + 1 :]


def _simple_commands(block: Block) -> Iterator[list[str]]:
    """Words between pipes, semicolons and redirections."""
    for line in lines_of(block):
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                if command:
                    yield command
                command = []
            else:
                command.append(word)


class Reader:
    """Follows a page in a folder: its blocks in order, as they stand there."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self._service = ExitStack()

    def follow(self, page: Page) -> tuple[Block, ...]:
        """Run what can be run; returns what was. Raises: AssertionError, with what the block said."""
        followed = []
        with self._service:
            for block in page.to_run:
                {"sh": self._commands, "console": self._session, "python": self._python}[block.kind](block)
                followed.append(block)
        return tuple(followed)

    def _commands(self, block: Block) -> None:
        """As a script that stops at its first failure; a service is started beside it, until the page ends."""
        script: list[str] = []
        for line in lines_of(block):
            if line.startswith(_SERVE):
                self._run(script, block)
                script = []
                self._service.close()
                self._service.enter_context(self._serving(line))
            else:
                script.append(line)
        self._run(script, block)

    def _run(self, script: list[str], block: Block) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == block.status, f"{block.page}\n{block.text}\n{done.stdout}"
        return done.stdout

    def _session(self, block: Block) -> None:
        """Commands with what they print; "..." in that stands for anything."""
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.replace("\\\n", " ").partition("\n")
            printed = self._run([command], block)
            pattern = re.escape(shown.strip()).replace(_ANYTHING, ".*?")
            assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"{block.page}\n$ {command}\n{printed}"

    def _python(self, block: Block) -> None:
        done = subprocess.run(
            [sys.executable, "-c", block.text],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block.page}\n{block.text}\n{done.stderr}"

    @contextmanager
    def _serving(self, line: str) -> Iterator[None]:
        words = shlex.split(line, comments=True)
        port = words[words.index("--port") + 1] if "--port" in words else "8000"
        with FileLock(Path(tempfile.gettempdir()) / f"chestxray-port-{port}.lock"):  # pages are followed side by side
            process = subprocess.Popen(words, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL)
            try:
                _wait_for(f"http://127.0.0.1:{port}/ping", process)
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=30) == 0


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the service ended"
        try:
            if httpx.get(address, timeout=60).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(address)
