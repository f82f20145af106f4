"""The site: its snippets run, every public name has one page, its own code is tested."""
