"""Mixture of experts: routing, one expert group (`ExpertGroup`) and two expert groups by token type (`MoEDispatch`)."""
