"""What is told of an error that nobody foresaw."""

import traceback


def frames_of(error: BaseException) -> str:
    """Where it was raised, as a traceback has it, and nothing more.

    Its message is for no log: that of a library may quote what a caller has sent. Whoever logs this names the
    type beside it.
    """
    return "".join(traceback.format_tb(error.__traceback__))
