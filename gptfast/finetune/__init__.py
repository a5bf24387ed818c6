"""Fine-tuning: a pretrained GPT becomes an application.

fit.py                      the loop that every fine-tuning shares
labelled.py                 labelled text from a table: columns, labels, balance, splits
classifier.py, metrics.py   a GPT with a classification head, and how well it classifies
"""
