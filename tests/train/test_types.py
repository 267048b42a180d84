"""The type checker sees what crosses a process boundary. It is installed where torch is, so this test stands here."""

import subprocess
import sys
import textwrap
from pathlib import Path


def test_a_misspelt_field_of_a_message_is_refused_by_the_type_checker(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    program = tmp_path / "listens.py"
    program.write_text(
        textwrap.dedent("""
            from edgevla.messages import Ack, Message, State
            from edgevla.wire import Inbox

            def listen(inbox: Inbox) -> None:
                message = inbox.newest(State)
                if message is not None:
                    print(message.body.position, message.body.positon)
                Ack(of_seq=1, is_acepted=True, reason="")
        """)
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(program)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    said = [line.partition("error: ")[2] for line in done.stdout.splitlines() if "error" in line]
    assert said[:2] == [
        '"State" has no attribute "positon"; maybe "position"?  [attr-defined]',
        'Unexpected keyword argument "is_acepted" for "Ack"; did you mean "is_accepted"?  [call-arg]',
    ]
