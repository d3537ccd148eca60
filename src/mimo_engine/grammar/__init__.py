"""What an output may be, token by token: grammars and thinking budgets. No torch, no numpy."""
