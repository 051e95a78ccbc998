"""HTTP/1.1 over asyncio, with httpx's names and types. Knows no thread and no consumer."""
