//! What a file of bindings declares, as far as two sides of a call must agree on it.
//!
//! Names of arguments do not matter, nor what a type is called: functions, fields and constants are
//! held with their types followed to the end, so that `nrt_dtype_t` and `enum nrt_dtype` are the
//! same number, and a struct goes by its `typedef` whether it has a tag or not.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use quote::ToTokens;
use syn::{
    Expr, Fields, File, GenericArgument, Item, ItemConst, ItemStruct, Lit, PathArguments,
    ReturnType, Stmt, Type, UseTree,
};

/// All declarations of one side, by name.
#[derive(Debug, Default)]
pub(crate) struct Declarations {
    functions: BTreeMap<String, Function>,
    structs: BTreeMap<String, Struct>,
    constants: BTreeMap<String, String>,
    /// What another name stands for.
    aliases: BTreeMap<String, String>,
}

/// Types of arguments and result, as written.
#[derive(Debug)]
struct Function {
    arguments: Vec<String>,
    result: String,
}

/// Fields in order with their types as written, and the layout that bindgen asserts.
#[derive(Debug, Default)]
struct Struct {
    fields: Vec<(String, String)>,
    size: Option<u64>,
    offsets: BTreeMap<String, u64>,
}

/// A struct as C lays it out.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Laid {
    /// Bytes; `None` if nobody says what is inside.
    pub(crate) size: Option<u64>,
    /// Name, offset, type.
    pub(crate) fields: Vec<(String, Option<u64>, String)>,
}

impl Declarations {
    /// Adds what a file declares.
    pub(crate) fn read(&mut self, text: &str) -> Result<()> {
        let file: File =
            syn::parse_str(text).context("these are no bindings that bindgen makes")?;
        for item in &file.items {
            match item {
                Item::Type(alias) => {
                    let name = alias.ident.to_string();
                    self.aliases.insert(name, written(&alias.ty));
                }
                // `pub use self::tag as name`: the typedef of an enumeration that has a tag.
                Item::Use(renamed) => self.rename(&renamed.tree),
                Item::Const(constant) if constant.ident == "_" => self.lay_out(constant),
                Item::Const(constant) => {
                    let name = constant.ident.to_string();
                    self.constants.insert(name, written(&constant.expr));
                }
                Item::Struct(item) => self.add(item),
                _ => {}
            }
        }
        Ok(())
    }

    /// How many there are, the names of types not counted.
    pub(crate) fn count(&self) -> usize {
        self.functions.len() + self.structs.len() + self.constants.len()
    }

    /// Every function with its types followed to the end: `(u32, *mut nrt_model_t) -> u32`.
    pub(crate) fn functions(&self) -> BTreeMap<&str, String> {
        let signature = |function: &Function| {
            let arguments = function.arguments.iter();
            let arguments: Vec<_> = arguments.map(|argument| self.followed(argument)).collect();
            let result = self.followed(&function.result);
            format!("({}) -> {result}", arguments.join(", "))
        };
        let functions = self.functions.iter();
        functions
            .map(|(name, function)| (name.as_str(), signature(function)))
            .collect()
    }

    /// Every struct by the name that it goes by.
    pub(crate) fn structs(&self) -> BTreeMap<String, Laid> {
        let laid = |item: &Struct| Laid {
            size: item.size,
            fields: item
                .fields
                .iter()
                .map(|(name, of)| {
                    let offset = item.offsets.get(name).copied();
                    (name.clone(), offset, self.followed(of))
                })
                .collect(),
        };
        let structs = self.structs.iter();
        structs
            .map(|(name, item)| (self.followed(name), laid(item)))
            .collect()
    }

    /// Every constant's value.
    pub(crate) fn constants(&self) -> BTreeMap<&str, &str> {
        let constants = self.constants.iter();
        constants
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    fn rename(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.rename(&path.tree),
            UseTree::Rename(rename) => {
                let (name, of) = (rename.rename.to_string(), rename.ident.to_string());
                self.aliases.insert(name, of);
            }
            _ => {}
        }
    }

    fn add(&mut self, item: &ItemStruct) {
        let Fields::Named(fields) = &item.fields else {
            return;
        };
        let mut plain = Vec::new();
        for field in &fields.named {
            let Some(name) = &field.ident else { continue };
            let name = name.to_string();
            // The functions are the fields of the struct that loads the library.
            match function(&field.ty) {
                Some(function) => {
                    self.functions.insert(name, function);
                }
                // Beside them there is the library itself, and in a handle a mark of its own.
                None if name == "__library" || name == "_unused" => {}
                None => plain.push((name, written(&field.ty))),
            }
        }
        if !plain.is_empty() {
            let entry = self.structs.entry(item.ident.to_string()).or_default();
            entry.fields = plain;
        }
    }

    /// Takes sizes and offsets from the assertions that bindgen writes:
    /// `["Offset of field: a::b"][offset_of!(a, b) - 8usize];`
    fn lay_out(&mut self, constant: &ItemConst) {
        let Expr::Block(block) = &*constant.expr else {
            return;
        };
        for statement in &block.block.stmts {
            let Some((claim, number)) = asserted(statement) else {
                continue;
            };
            if let Some(name) = claim.strip_prefix("Size of ") {
                self.structs.entry(name.to_owned()).or_default().size = Some(number);
            } else if let Some(place) = claim.strip_prefix("Offset of field: ")
                && let Some((name, field)) = place.split_once("::")
            {
                let entry = self.structs.entry(name.to_owned()).or_default();
                entry.offsets.insert(field.to_owned(), number);
            }
        }
    }

    /// A type with every name in it followed to the end.
    fn followed(&self, written: &str) -> String {
        let words = written.split(' ').map(|word| self.end_of(word));
        words.collect::<Vec<_>>().join(" ")
    }

    fn end_of<'a>(&'a self, word: &'a str) -> &'a str {
        let mut word = word;
        // An alias of itself would be no C; the count is for files that are none.
        for _ in 0..16 {
            match self.aliases.get(word) {
                Some(next) if self.is_struct(next) => return self.typedef(next),
                Some(next) => word = next,
                None => break,
            }
        }
        match word {
            "c_int" => "i32",
            "c_uint" => "u32",
            tag if self.is_struct(tag) => self.typedef(tag),
            other => other,
        }
    }

    /// Whether a name is none of a number's and nobody's alias: a struct's, or an opaque one's.
    fn is_struct(&self, name: &str) -> bool {
        name.starts_with("nrt") && !self.aliases.contains_key(name)
    }

    /// The `typedef` of a struct's tag, or the tag.
    fn typedef<'a>(&'a self, tag: &'a str) -> &'a str {
        let named = |(alias, of): (&'a String, &String)| (of == tag).then_some(alias.as_str());
        self.aliases.iter().find_map(named).unwrap_or(tag)
    }
}

/// A type or value in words with one space between, without the paths of Rust's own types.
fn written(tokens: &impl ToTokens) -> String {
    let text = tokens.to_token_stream().to_string();
    let text = text
        .replace(":: std :: os :: raw :: ", "")
        .replace(":: std :: ffi :: ", "")
        .replace("* mut", "*mut")
        .replace("* const", "*const");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The function in `Result<unsafe extern "C" fn(..) -> .., Error>`.
fn function(of: &Type) -> Option<Function> {
    let Type::Path(path) = of else { return None };
    let last = path.path.segments.last()?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return None;
    };
    let pointer = arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(Type::FnPtr(pointer)) => Some(pointer),
        _ => None,
    })?;
    Some(Function {
        arguments: pointer
            .inputs
            .iter()
            .map(|input| written(&input.ty))
            .collect(),
        result: match &pointer.output {
            ReturnType::Default => "()".to_owned(),
            ReturnType::Type(_, of) => written(of),
        },
    })
}

/// Claim and number of `["claim"][.. - number];`.
fn asserted(statement: &Stmt) -> Option<(String, u64)> {
    let Stmt::Expr(Expr::Index(index), _) = statement else {
        return None;
    };
    let Expr::Array(array) = &*index.expr else {
        return None;
    };
    let claim = array.elems.first().and_then(literal)?;
    let Expr::Binary(difference) = &*index.index else {
        return None;
    };
    match (claim, literal(&difference.right)?) {
        (Lit::Str(claim), Lit::Int(number)) => Some((claim.value(), number.base10_parse().ok()?)),
        _ => None,
    }
}

fn literal(expression: &Expr) -> Option<&Lit> {
    match expression {
        Expr::Lit(literal) => Some(&literal.lit),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Declarations {
        let mut declarations = Declarations::default();
        declarations.read(text).expect("what bindgen writes");
        declarations
    }

    #[test]
    fn a_function_is_its_types_and_nobody_asks_what_they_are_called() {
        let tagged = read(
            "pub type nrt_kind = ::std::os::raw::c_uint;
             pub use self::nrt_kind as nrt_kind_t;
             pub type nrt_tensor_t = nrt_tensor;
             pub struct Installed {
                 __library: ::libloading::Library,
                 pub nrt_look: Result<
                     unsafe extern \"C\" fn(
                         kind: nrt_kind_t,
                         tensor: *const nrt_tensor_t,
                     ) -> ::std::os::raw::c_int,
                     ::libloading::Error,
                 >,
             }",
        );
        let plain = read(
            "pub type nrt_tensor_t = nrt_tensor_inside;
             pub struct Nrt {
                 pub nrt_look: Result<unsafe extern \"C\" fn(k: u32, t: *const nrt_tensor_inside) -> i32,
                     ::libloading::Error>,
             }",
        );
        let signature = "(u32, *const nrt_tensor_t) -> i32";
        assert_eq!(
            tagged.functions().get("nrt_look").map(String::as_str),
            Some(signature)
        );
        assert_eq!(
            plain.functions().get("nrt_look").map(String::as_str),
            Some(signature)
        );
    }

    #[test]
    fn a_struct_is_its_layout_under_its_typedef() {
        let declarations = read(
            "pub type nrt_info_t = nrt_info;
             pub struct nrt_info { pub name: [::std::os::raw::c_char; 16usize], pub size: usize }
             const _: () = {
                 [\"Size of nrt_info\"][::std::mem::size_of::<nrt_info>() - 24usize];
                 [\"Offset of field: nrt_info::size\"]
                     [::std::mem::offset_of!(nrt_info, size) - 16usize];
             };",
        );
        let structs = declarations.structs();
        let info = structs.get("nrt_info_t").expect("it goes by its typedef");
        assert_eq!(info.size, Some(24));
        let (name, offset, of) = &info.fields[1];
        assert_eq!(
            (name.as_str(), *offset, of.as_str()),
            ("size", Some(16), "usize")
        );
    }

    #[test]
    fn a_handle_has_nothing_inside() {
        let declarations = read("pub struct nrt_model { _unused: [u8; 0] }");
        assert!(declarations.structs().is_empty());
    }
}
