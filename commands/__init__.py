"""What the commands of `pocketmoe` take, do and show."""
