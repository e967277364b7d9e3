"""What commands of several folders share: measurements and result files, checkpoints, servers, model shapes."""
