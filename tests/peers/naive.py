"""The naive way to serve a model: transformers behind FastAPI, one `generate` per request.

One request runs at a time: threads that generate at once are slower together on a CPU.
Usage: python naive.py MODEL_DIR PORT
"""

import asyncio
import json
import sys

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from transformers import AsyncTextIteratorStreamer, AutoModelForCausalLM, AutoTokenizer

folder, port = sys.argv[1], int(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
# The checkpoint's own format, BF16, which is what transformers takes if nothing is said.
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
one_at_a_time = asyncio.Lock()
app = FastAPI()


class Chat(BaseModel):
    """What is read of a request."""

    messages: list[dict]
    max_tokens: int = 64
    ignore_eos: bool = False


@app.get("/health")
def health() -> dict:
    return {}


@app.get("/v1/models")
def models() -> dict:
    return {"object": "list", "data": [{"id": "naive", "object": "model"}]}


@app.post("/v1/chat/completions")
async def chat(body: Chat) -> StreamingResponse:
    return StreamingResponse(events(body), media_type="text/event-stream")


async def events(body: Chat):
    """The answer as server-sent events; its text comes in the pieces that the streamer makes."""
    async with one_at_a_time:
        inputs = tokenizer.apply_chat_template(
            body.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = AsyncTextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        running = asyncio.create_task(asyncio.to_thread(generate, body, inputs, streamer))
        async for text in streamer:
            yield event({"choices": [{"index": 0, "delta": {"content": text}}]})
        output = await running
        prompt = inputs["input_ids"].shape[1]
    usage = {"prompt_tokens": prompt, "completion_tokens": output.shape[1] - prompt}
    yield event({"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


@torch.inference_mode()
def generate(body: Chat, inputs, streamer) -> torch.Tensor:
    return model.generate(
        **inputs,
        streamer=streamer,
        do_sample=False,
        max_new_tokens=body.max_tokens,
        min_new_tokens=body.max_tokens if body.ignore_eos else None,
    )


def event(chunk: dict) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
