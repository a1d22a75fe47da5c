"""chestxray on AWS: each command states what it will create and cost; everything can be listed and removed again."""
