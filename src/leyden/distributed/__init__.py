"""The processes of one training: who they are, what they tell one another, and how they average."""
