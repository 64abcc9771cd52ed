"""What the simulated provider says: an essay on rivers and locks, told token by token.

Every piece in ``TOKENS`` is exactly one token of o200k_base, and so is every piece of
any run of them, wrapped around or not: counting the text of an answer gives the number
of pieces sent. The tests hold this against the real vocabulary; nothing is loaded here.
"""

import re
from itertools import cycle, islice
from typing import Final

_ESSAY: Final = """\
A river is never the same twice, and yet the people who live beside it know it by \
name. They know the sound it makes in spring, when the snow has gone from the hills \
and the water comes down brown and fast, and they know how quiet it can be in \
August, when a child may walk across on the stones. What the river carries, it \
carries for everyone: timber, grain, news, and the small boats of those who have \
somewhere to be.

To travel up such a river you need a lock. The idea is simple enough to draw with a \
stick in the sand. Two gates, a chamber between them, and a way to let the water in \
and out. A boat enters from below and the lower gate is closed behind it. Then the \
keeper opens the paddle, and the water rises, slowly at first, until it stands level \
with the reach above. Nothing is lifted by hand. The river does the work, and the \
keeper only decides when it may begin.

A good keeper is patient. He does not open the upper gate because a captain is \
shouting, and he does not hold a boat back because he is tired of boats. He looks at \
the level, he counts what has passed, and he writes it in the book. At the end of \
the day the book must agree with the river. If ten boats went up, ten lines are \
written, and if one of them turned back before the gate, there is a line for that as \
well.

A sluice is the smaller sister of the lock. It moves no boats. It lets through as \
much water as the mill below can use, and it keeps the rest behind the wall. When \
the wheel stands still, the sluice must close, or the meadow will be a lake by \
morning. When the wheel runs, the sluice must follow it, a little more, a little \
less, hour after hour. Nobody comes to see a sluice at work. They come on the day it \
fails.

So the old builders made them plain and strong. They used oak for the gates, iron \
for the pins, and stone for everything that had to stay where it was. They left \
marks on the wall for high water, with the year beside each, so that those who came \
later would know what to expect. Some of those marks are far above your head. Stand \
under them for a moment, listen to the water going by, and you will see why the \
walls are so thick.

"""

# "sluice" is the one word here that the vocabulary has in two pieces.
TOKENS: Final = tuple(re.findall(r"[.]\n\n| slu|(?<=slu)ice| ?[A-Za-z]+|[.,:]", _ESSAY))


def passage(start: int, count: int) -> str:
    """``count`` tokens from the ``start``-th on, beginning again at the end."""
    first = start % len(TOKENS)
    if first + count <= len(TOKENS):
        return "".join(TOKENS[first : first + count])
    return "".join(islice(cycle(TOKENS), first, first + count))
