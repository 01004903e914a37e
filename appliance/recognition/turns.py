"""What customers share fairly: whose turn it is among those that wait, and who gets in when it is full.

A customer is told by its id; None stands for all work that is done for nobody in particular.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What waits: one of each customer's after the other, each customer's in the order in which they came.

    Whose was worth several turns (`charge`) stands back so often while others wait. When nobody else does,
    its debt is forgotten.
    """

    def __init__(self) -> None:
        self._debts: dict[Hashable, int] = {}
        self._served: Hashable = None  # who had the last turn
        # In the order of their turns, the next one first; none is empty.
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item in line)

    @property
    def first(self) -> T:
        """What `take` would give. Raises IndexError when nothing waits."""
        if not self._lines:
            raise IndexError("nobody waits")
        return next(iter(self._lines.values()))[0]

    def append(self, customer: Hashable, item: T) -> None:
        """Behind all others of its customer; a new one goes before a customer that was alone until now."""
        if customer not in self._lines and len(self._lines) == 1 and self._served in self._lines:
            self._lines[customer] = deque()
            self._lines.move_to_end(self._served)
        self._lines.setdefault(customer, deque()).append(item)
        self._count += 1
        self._stand_back()

    def put_first(self, customer: Hashable, item: T) -> None:
        """Before all others: it had its turn and is to have another."""
        self._lines.setdefault(customer, deque()).appendleft(item)
        self._lines.move_to_end(customer, last=False)
        self._count += 1

    def charge(self, customer: Hashable, turns: int) -> None:
        """What this customer had was worth so many turns beside its own: it gives them to those that wait."""
        if turns > 0 and any(other != customer for other in self._lines):
            self._debts[customer] = self._debts.get(customer, 0) + turns
            self._stand_back()

    def take(self) -> T:
        """The first, whose customer goes behind the others. Raises IndexError when nothing waits."""
        item = self.first
        self._served = next(iter(self._lines))
        self.remove(self._served, item)
        return item

    def remove(self, customer: Hashable, item: T) -> bool:
        """Whether it waited, which it does no more; with the first one its customer's turn is over."""
        line = self._lines.get(customer)
        if line is None or item not in line:
            return False
        took_turn = item is line[0] and customer == next(iter(self._lines))
        line.remove(item)
        self._count -= 1
        if not line:
            del self._lines[customer]
        elif took_turn:
            self._lines.move_to_end(customer)
        if took_turn:
            self._stand_back()
        return True

    def _stand_back(self) -> None:
        """Have the next customer be one that owes the others nothing."""
        if len(self._lines) < 2 and self._lines.keys() >= self._debts.keys():
            self._debts.clear()
        while len(self._lines) > 1 and (customer := next(iter(self._lines))) in self._debts:
            self._lines.move_to_end(customer)
            self._debts[customer] -= 1
            if not self._debts[customer]:
                del self._debts[customer]


class Shares:
    """How much each customer has taken of a room for `size`.

    It may all be one customer's while nobody else comes. Whoever finds it full gets in up to an equal share,
    so that nobody is kept out by what others have: with n customers it holds at most 1 + ln(n) times `size`.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._own: dict[Hashable, int] = {}
        self.taken = 0

    def fits(self, customer: Hashable, amount: int = 1) -> bool:
        """Whether so much more of this customer's may come in; into an empty room anything may."""
        if not self.taken or self.taken + amount <= self._size:
            return True
        among = len(self._own) + (customer not in self._own)
        return (self._own.get(customer, 0) + amount) * among <= self._size

    def of(self, customer: Hashable) -> int:
        """How much a customer has taken."""
        return self._own.get(customer, 0)

    def take(self, customer: Hashable, amount: int = 1) -> None:
        """It has come in."""
        if amount:
            self._own[customer] = self._own.get(customer, 0) + amount
            self.taken += amount

    def give(self, customer: Hashable, amount: int = 1) -> None:
        """It has left again."""
        left = self._own.get(customer, 0) - amount
        self.taken -= amount
        if left > 0:
            self._own[customer] = left
        else:
            self._own.pop(customer, None)
