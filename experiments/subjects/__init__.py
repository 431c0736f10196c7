"""The study of subject consistency: one sequence with references, against fine-tuning.

study_config       networks, methods and evaluation settings of a comparison
evaluation_cases   the fixed cases that all methods are evaluated on
networks, methods  trained networks, and how methods sample the cases; tuning, fusion
scoring            metrics of the samples, by trained judges or image encoders
results, report    the results table, the manifest, and the report
study              all of it, resumable
"""
