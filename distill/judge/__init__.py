"""A judge model behind a server with OpenAI's API: it judges final answers, and grades traces on a rubric."""
