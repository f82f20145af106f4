"""Losses on ranked lists: the last axis holds the items of one list, ordered by the teacher's scores."""
