"""The explorer: finished runs of one or several stores as one page with figures, tables and samples to look through.

The page is one file that needs no network: the data document as JSON, the templates of this folder, and the libraries
under `vendor/`. Every number and every sentence on it is made here; the scripts filter, sort and draw.
"""
