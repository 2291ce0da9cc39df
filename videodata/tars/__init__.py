"""Videos in tar shards, as WebDataset lays them out: which shards a path means (`names`), their index and its making
(`index`, `scan`), reading and keeping them (`source`, `cache`), writing them (`writer`).
"""
