"""What softmax, log_softmax and logsumexp share: arguments, linear maps, the tower of the first two, launches."""
