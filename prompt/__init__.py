"""How a request becomes text and tokens become bytes: one code for router and replica."""
