"""Files and batches of the OpenAI API: a batch is a job whose rows are the lines of a file."""
