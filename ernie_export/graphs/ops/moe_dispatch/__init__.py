"""Mixture of experts: routing, one bank (`ExpertBank`) and two banks by token type (`MoEDispatch`)."""
