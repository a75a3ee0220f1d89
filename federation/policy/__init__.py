"""What may leave, to whom and in what form (blueprint section 7): Cedar rules, asked so that every fault denies."""
