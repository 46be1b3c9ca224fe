"""The commands of `pocketmoe`: arguments, work, output."""
