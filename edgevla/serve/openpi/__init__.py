"""openpi's protocol, on both sides: robots that speak it drive our bundles, our arms are driven by its servers.

packing.py    values and arrays as bytes, and back       keys.py       the map between its names and ours
hosting.py    a bundle behind such a map                 server.py     `edgevla serve --protocol openpi`
line.py       one connection to a server                 remote.py     the `Predictor` of `deploy --policy ws://...`
declared.py   what a map says in place of a manifest     address.py    ws://HOST:PORT, on this machine only
"""
