"""Write a student in another format (`distill.export`), compare it with the full student, publish it."""
