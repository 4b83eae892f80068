"""Pictures first: what a run looks like while it trains, and the page that it leaves behind.

live.py is the terminal view, page.py writes RUN/report.html from what record.py read, charts.py
draws its curves, wording.py makes figures and foreign text readable.
"""
