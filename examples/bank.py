"""Money that moves between accounts and is never lost or made, whatever crashes: durable sends.

Run it with `perdure run examples/bank.py`.  A transfer takes the money from one account and sends it to
another, both in one turn: either both happen or nothing does.  The message arrives exactly once, so the sum
of all balances and of what is on its way is always the same.  Nobody waits for the other account, and no
two accounts that pay each other at the same time can block each other.
"""

from perdure import DurableObject, durable


class NotEnough(Exception):
    """The account holds less than what was to be taken from it."""


class Account(DurableObject):
    balance: int = durable(0)

    async def deposit(self, amount: int) -> int:
        """Money comes in from outside; the new balance."""
        self.balance += _positive(amount)
        return self.balance

    async def transfer(self, to: str, amount: int) -> int:
        """Sends money to another account; the new balance here."""
        if _positive(amount) > self.balance:
            raise NotEnough(f"{self.id.name} holds {self.balance}, not {amount}")
        self.balance -= amount
        self.ctx.send(Account, to).receive(amount)
        return self.balance

    async def receive(self, amount: int) -> None:
        """Money arrives from another account."""
        self.balance += amount

    async def state(self) -> tuple[int, int]:
        """The balance, and what is on its way to others."""
        messages = await self.ctx.outbox.list(limit=10_000)
        return self.balance, sum(message.args[0] for message in messages)


def _positive(amount: int) -> int:
    if amount <= 0:
        raise ValueError(f"an amount is more than 0, not {amount}")
    return amount
