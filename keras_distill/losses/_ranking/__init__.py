"""Losses on ranked lists: the last axis holds the items of one list, and the teacher's scores say their order."""
