"""Pieces that tests share: real text, small models, loopback servers, jobs run as users do."""
