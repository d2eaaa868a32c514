"""The network: a frozen base, its experts and routers, and what they compute. Everything that torch differentiates."""
