//! Tiny files of each kind, whole and valid, for tests that change one thing about them.

#![allow(dead_code, reason = "each test binary uses its part")]

/// A Llama of one layer: what [`tensors`] has the tensors of.
pub(crate) const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 6,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128, "rope_scaling":
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64}, "tie_word_embeddings": true}"#;

/// All of its tensors.
pub(crate) const TENSORS: [(&str, &[usize]); 11] = [
    ("model.embed_tokens.weight", &[6, 32]),
    ("model.norm.weight", &[32]),
    ("model.layers.0.input_layernorm.weight", &[32]),
    ("model.layers.0.self_attn.q_proj.weight", &[32, 32]),
    ("model.layers.0.self_attn.k_proj.weight", &[16, 32]),
    ("model.layers.0.self_attn.v_proj.weight", &[16, 32]),
    ("model.layers.0.self_attn.o_proj.weight", &[32, 32]),
    ("model.layers.0.post_attention_layernorm.weight", &[32]),
    ("model.layers.0.mlp.gate_proj.weight", &[64, 32]),
    ("model.layers.0.mlp.up_proj.weight", &[64, 32]),
    ("model.layers.0.mlp.down_proj.weight", &[32, 64]),
];

/// A safetensors file of these tensors, in BF16, all bytes of each being its place in the list.
pub(crate) fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut numbers = Vec::new();
    for (place, (name, shape)) in (0_u8..).zip(tensors) {
        let start = numbers.len();
        numbers.resize(start + shape.iter().product::<usize>() * 2, place);
        let entry = serde_json::json!({
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [start, numbers.len()],
        });
        header.insert((*name).to_owned(), entry);
    }
    with_header(&serde_json::Value::from(header).to_string(), &numbers)
}

/// A safetensors file with this header.
pub(crate) fn with_header(header: &str, numbers: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [length.as_slice(), header.as_bytes(), numbers].concat()
}

/// A value of GGUF's metadata.
#[derive(Clone)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Texts(Vec<&'static str>),
    I32s(Vec<i32>),
}

/// A tensor of a GGUF.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Fastest first.
    pub(crate) sizes: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// A GGUF file in the making.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) keys: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Tensor>,
}

impl Gguf {
    /// The Llama of [`CONFIG`], without rope scaling; its tokens are `a b ab Ġ <|s|> <|e|>`. The numbers
    /// of each matrix are the number of their row.
    pub(crate) fn llama() -> Self {
        Self::of("llama")
    }

    /// The same of another architecture.
    pub(crate) fn of(architecture: &'static str) -> Self {
        let mut gguf = Self {
            keys: Vec::new(),
            tensors: Vec::new(),
        };
        gguf.set("general.architecture", Value::Text(architecture));
        for (name, number) in [
            ("context_length", 128),
            ("embedding_length", 32),
            ("block_count", 1),
            ("feed_forward_length", 64),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
        ] {
            gguf.set(&format!("{architecture}.{name}"), Value::U32(number));
        }
        let epsilon = format!("{architecture}.attention.layer_norm_rms_epsilon");
        gguf.set(&epsilon, Value::F32(1e-5));
        for (name, value) in [
            ("model", Value::Text("gpt2")),
            ("pre", Value::Text("smollm")),
            (
                "tokens",
                Value::Texts(vec!["a", "b", "ab", "Ġ", "<|s|>", "<|e|>"]),
            ),
            ("token_type", Value::I32s(vec![1, 1, 1, 1, 3, 3])),
            ("merges", Value::Texts(vec!["a b"])),
            ("bos_token_id", Value::U32(4)),
            ("eos_token_id", Value::U32(5)),
        ] {
            gguf.set(&format!("tokenizer.ggml.{name}"), value);
        }
        gguf.set("tokenizer.chat_template", Value::Text("{{ messages }}"));
        for (name, rows, columns) in [
            ("token_embd", 6, 32),
            ("blk.0.attn_q", 32, 32),
            ("blk.0.attn_k", 16, 32),
            ("blk.0.attn_v", 16, 32),
            ("blk.0.attn_output", 32, 32),
            ("blk.0.ffn_gate", 64, 32),
            ("blk.0.ffn_up", 64, 32),
            ("blk.0.ffn_down", 32, 64),
        ] {
            gguf.matrix(&format!("{name}.weight"), rows, columns);
        }
        for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
            gguf.vector(&format!("{name}.weight"), &[1.0; 32]);
        }
        gguf
    }

    /// Gives `key` this value, in place of the one it has.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.keys.retain(|(other, _)| other != key);
        self.keys.push((key.to_owned(), value));
    }

    /// An F32 matrix whose numbers are the number of their row.
    pub(crate) fn matrix(&mut self, name: &str, rows: u16, columns: usize) {
        let numbers = (0..rows).flat_map(|row| vec![f32::from(row); columns]);
        let bytes = numbers.flat_map(f32::to_le_bytes).collect();
        let sizes = vec![columns as u64, rows.into()];
        self.tensor(name, sizes, 0, bytes);
    }

    /// An F32 vector.
    pub(crate) fn vector(&mut self, name: &str, numbers: &[f32]) {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes());
        self.tensor(name, vec![numbers.len() as u64], 0, bytes.collect());
    }

    /// Any tensor, in place of the one of that name.
    pub(crate) fn tensor(&mut self, name: &str, sizes: Vec<u64>, kind: u32, bytes: Vec<u8>) {
        self.tensors.retain(|other| other.name != name);
        let name = name.to_owned();
        self.tensors.push(Tensor {
            name,
            sizes,
            kind,
            bytes,
        });
    }

    /// The file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut file, key);
            value.write(&mut file);
        }
        let mut start = 0_u64;
        for tensor in &self.tensors {
            text(&mut file, &tensor.name);
            let dimensions = u32::try_from(tensor.sizes.len()).unwrap();
            file.extend(dimensions.to_le_bytes());
            for size in &tensor.sizes {
                file.extend(size.to_le_bytes());
            }
            file.extend(tensor.kind.to_le_bytes());
            file.extend(start.to_le_bytes());
            start += (tensor.bytes.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(&tensor.bytes);
        }
        file
    }
}

impl Value {
    fn write(&self, file: &mut Vec<u8>) {
        let kind = |kind: u32| kind.to_le_bytes();
        let list = |of: u32, length: usize| {
            let length = (length as u64).to_le_bytes();
            [kind(9).as_slice(), &kind(of), &length].concat()
        };
        match self {
            Value::U32(number) => file.extend([kind(4), number.to_le_bytes()].concat()),
            Value::F32(number) => file.extend([kind(6), number.to_le_bytes()].concat()),
            Value::Bool(flag) => file.extend([&kind(7)[..], &[u8::from(*flag)]].concat()),
            Value::Text(content) => {
                file.extend(kind(8));
                text(file, content);
            }
            Value::Texts(texts) => {
                file.extend(list(8, texts.len()));
                texts.iter().for_each(|content| text(file, content));
            }
            Value::I32s(numbers) => {
                file.extend(list(5, numbers.len()));
                file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            }
        }
    }
}

fn text(file: &mut Vec<u8>, content: &str) {
    file.extend((content.len() as u64).to_le_bytes());
    file.extend(content.as_bytes());
}
