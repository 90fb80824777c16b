//! The table of tensors in a PyTorch file (`data.pkl`).
//!
//! A pickle is a program for a small stack machine that can call anything in Python. Here nothing is ever called: the
//! machine knows the opcodes that `torch.save` writes for a dictionary of tensors, and the handful of names that they
//! mention; everything else is refused by name. Every opcode takes at least one byte and pushes at most one small
//! value, so time and memory are bounded by the size of the pickle.

use std::{collections::HashMap, path::Path};

pub use super::tensors::Pickled;
use super::{
    entry::ElementType,
    opcode as op,
    tensors::{Global, Storage, Tensor, named_tensors},
};
use crate::error::{Error, Result};

/// The longest name of a module or a class.
const LONGEST_NAME: usize = 256;

/// Reads the tensors of a pickled dictionary, in its order; `path` is for messages.
///
/// # Errors
/// [`Error::Unsupported`] for opcodes and globals beyond those of a dictionary of dense tensors, and for tensors that
/// are not row-major; [`Error::BadFile`] for a pickle that is damaged or no such dictionary.
pub fn parse_pickle(bytes: &[u8], path: &Path) -> Result<Vec<Pickled>> {
    let mut machine = Machine {
        bytes,
        at: 0,
        path,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        tuples: Vec::new(),
        dicts: Vec::new(),
        storages: Vec::new(),
        tensors: Vec::new(),
    };
    let root = machine.run()?;
    let Value::Dict(root) = root else {
        return Err(Error::bad_file(path, "data.pkl", "it is not a dictionary of tensors"));
    };
    let items = machine.dicts[root].iter().map(|(key, value)| {
        let tensor = |value: &Value<'_>| match value {
            Value::Tensor(i) => Some(&machine.tensors[*i]),
            _ => None,
        };
        match key {
            Value::Text(name) => Ok((*name, tensor(value))),
            _ => Err(Error::bad_file(path, "data.pkl", "a key of the dictionary is not a text")),
        }
    });
    named_tensors(items.collect::<Result<Vec<_>>>()?, &machine.storages, path)
}

/// What stands on the stack. Containers stand in the machine's arenas, so a value is small, and nothing is nested.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    /// A range of `Machine::tuples`.
    Tuple {
        start: usize,
        len: usize,
    },
    /// Lists occur, but say nothing about tensors.
    List,
    Dict(usize),
    Global(Global<'a>),
    Storage(usize),
    Tensor(usize),
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
    stack: Vec<Value<'a>>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    tuples: Vec<Value<'a>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage<'a>>,
    tensors: Vec<Tensor>,
}

impl<'a> Machine<'a> {
    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::bad_file(self.path, format!("data.pkl, byte {}", self.at), problem)
    }

    fn refuse(&self, what: String) -> Error {
        let remedy = "load the checkpoint in PyTorch and save it as safetensors".into();
        Error::Unsupported { path: self.path.into(), what, remedy }
    }

    /// Follows the program to its end and gives what it leaves.
    fn run(&mut self) -> Result<Value<'a>> {
        loop {
            let code = self.take_array::<1>()?[0];
            if code == op::STOP {
                return self.pop();
            }
            self.step(code)?;
        }
    }

    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            op::PROTO => self.protocol(),
            op::FRAME => self.take_array::<8>().map(drop),
            op::MARK => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            op::NONE => self.push(Value::None),
            op::NEWTRUE | op::NEWFALSE => self.push(Value::Bool),
            op::BININT => {
                let word = self.take_array()?;
                self.push(Value::Int(i32::from_le_bytes(word).into()))
            }
            op::BININT1 => {
                let [byte] = self.take_array()?;
                self.push(Value::Int(byte.into()))
            }
            op::BININT2 => {
                let word = self.take_array()?;
                self.push(Value::Int(u16::from_le_bytes(word).into()))
            }
            op::LONG1 => self.long(),
            op::BINUNICODE => {
                let len = u32::from_le_bytes(self.take_array()?);
                self.text(len as usize)
            }
            op::SHORT_BINUNICODE => {
                let [len] = self.take_array()?;
                self.text(len.into())
            }
            op::EMPTY_TUPLE => self.push(Value::Tuple { start: 0, len: 0 }),
            op::TUPLE => {
                let start = self.pop_mark()?;
                self.tuple(start)
            }
            op::TUPLE1 => self.tuple_of(1),
            op::TUPLE2 => self.tuple_of(2),
            op::TUPLE3 => self.tuple_of(3),
            op::EMPTY_LIST => self.push(Value::List),
            op::APPEND => {
                self.pop()?;
                self.top_list()
            }
            op::APPENDS => {
                let start = self.pop_mark()?;
                self.stack.truncate(start);
                self.top_list()
            }
            op::EMPTY_DICT => self.new_dict(),
            op::SETITEM => {
                let start = self.stack.len().checked_sub(2).ok_or_else(|| self.bad("the stack is empty"))?;
                self.set_items(start)
            }
            op::SETITEMS => {
                let start = self.pop_mark()?;
                self.set_items(start)
            }
            op::BINPUT => {
                let [index] = self.take_array()?;
                self.remember(index.into())
            }
            op::LONG_BINPUT => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.remember(index)
            }
            op::MEMOIZE => {
                let index = u32::try_from(self.memo.len()).map_err(|_| self.bad("the memo is full"))?;
                self.remember(index)
            }
            op::BINGET => {
                let [index] = self.take_array()?;
                self.recall(index.into())
            }
            op::LONG_BINGET => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.recall(index)
            }
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            op::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.global(module, name),
                _ => Err(self.bad("a global without a name")),
            },
            op::BINPERSID => self.persistent(),
            op::REDUCE => self.reduce(),
            op::BUILD => self.build(),
            other => Err(self.refuse(op::refused(other))),
        }
    }

    // Reading

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..len).ok_or_else(|| self.bad(format!("it ends within {len} bytes")))?;
        self.at += len;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(*self.take(N)?.first_chunk().expect("N bytes were taken"))
    }

    /// A line of text, without its end.
    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().take(LONGEST_NAME + 1).position(|b| *b == b'\n');
        let len = len.ok_or_else(|| self.bad("a name without an end"))?;
        let line = self.take(len)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| self.bad("a name that is not UTF-8"))
    }

    fn protocol(&mut self) -> Result<()> {
        match self.take_array()? {
            [2..=5] => Ok(()),
            [other] => Err(self.refuse(format!("the pickle protocol {other}"))),
        }
    }

    fn text(&mut self, len: usize) -> Result<()> {
        let bytes = self.take(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.bad("a text that is not UTF-8"))?;
        self.push(Value::Text(text))
    }

    /// A number of up to 255 bytes, of which those of more than 8 have no use here.
    fn long(&mut self) -> Result<()> {
        let [len] = self.take_array()?;
        let bytes = self.take(len.into())?;
        let negative = bytes.last().is_some_and(|b| *b >= 0x80);
        let mut word = if negative { [0xFF; 8] } else { [0; 8] };
        let target =
            word.get_mut(..bytes.len()).ok_or_else(|| self.bad(format!("a number of {len} bytes")))?;
        target.copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(word)))
    }

    // The stack

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        self.stack.push(value);
        Ok(())
    }

    /// The top of the stack, which must stand above the last mark.
    fn pop(&mut self) -> Result<Value<'a>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(value) if self.stack.len() >= floor => Ok(value),
            _ => Err(self.bad("the stack is empty")),
        }
    }

    fn top(&self) -> Result<Value<'a>> {
        self.stack.last().copied().ok_or_else(|| self.bad("the stack is empty"))
    }

    /// Closes the last mark and gives the height of the stack at which it stands.
    fn pop_mark(&mut self) -> Result<usize> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(mark),
            _ => Err(self.bad("a mark is missing")),
        }
    }

    fn remember(&mut self, index: u32) -> Result<()> {
        let value = self.top()?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let value = self.memo.get(&index).copied();
        self.push(value.ok_or_else(|| self.bad(format!("nothing was remembered as {index}")))?)
    }

    // Containers

    fn tuple_of(&mut self, len: usize) -> Result<()> {
        let start = self.stack.len().checked_sub(len).ok_or_else(|| self.bad("the stack is empty"))?;
        self.tuple(start)
    }

    /// Makes a tuple of what stands above `height`.
    fn tuple(&mut self, height: usize) -> Result<()> {
        let start = self.tuples.len();
        self.tuples.extend(self.stack.drain(height..));
        self.push(Value::Tuple { start, len: self.tuples.len() - start })
    }

    fn top_list(&self) -> Result<()> {
        match self.top()? {
            Value::List => Ok(()),
            _ => Err(self.bad("something is appended to a value that is not a list")),
        }
    }

    fn new_dict(&mut self) -> Result<()> {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    /// Moves the keys and values above `height` into the dictionary below.
    fn set_items(&mut self, height: usize) -> Result<()> {
        let items: Vec<_> = self.stack.drain(height..).collect();
        let Value::Dict(dict) = self.top()? else {
            return Err(self.bad("items are put into a value that is not a dictionary"));
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.bad("a key without a value"));
        }
        self.dicts[dict].extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    // Objects

    fn global(&mut self, module: &str, name: &'a str) -> Result<()> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", class) if ElementType::from_torch(class).is_some() => Global::Storage(class),
            _ => {
                let shown: String = format!("{module}.{name}").chars().take(LONGEST_NAME).collect();
                return Err(self.refuse(format!("the pickle global {shown}")));
            }
        };
        self.push(Value::Global(global))
    }

    fn elements_of(&self, tuple: Value<'a>) -> Option<&[Value<'a>]> {
        match tuple {
            Value::Tuple { start, len } => self.tuples.get(start..start + len),
            _ => None,
        }
    }

    /// `('storage', class, key, device, elements)` becomes a storage.
    fn persistent(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match self.elements_of(id) {
            Some(
                [
                    Value::Text("storage"),
                    Value::Global(Global::Storage(class)),
                    Value::Text(key),
                    Value::Text(_),
                    Value::Int(n),
                ],
            ) => u64::try_from(*n).ok().map(|elements| Storage { class, key, elements }),
            _ => None,
        };
        self.storages.push(storage.ok_or_else(|| self.bad("a reference to something else than a storage"))?);
        self.push(Value::Storage(self.storages.len() - 1))
    }

    /// Reads a call of one of the known globals.
    fn reduce(&mut self) -> Result<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let arguments = self.elements_of(arguments).ok_or_else(|| self.bad("a call without arguments"))?;
        match (callable, arguments) {
            (Value::Global(Global::OrderedDict), []) => self.new_dict(),
            (
                Value::Global(Global::RebuildTensor),
                [Value::Storage(storage), Value::Int(offset), shape, stride, Value::Bool, Value::Dict(_)],
            ) => {
                let tensor = u64::try_from(*offset).ok().zip(self.dims(*shape)).zip(self.dims(*stride));
                let tensor = tensor.map(|((offset, shape), stride)| Tensor {
                    storage: *storage,
                    offset,
                    shape,
                    stride,
                });
                self.tensors.push(
                    tensor.ok_or_else(|| self.bad("a tensor with an impossible offset, shape or stride"))?,
                );
                self.push(Value::Tensor(self.tensors.len() - 1))
            }
            (
                Value::Global(Global::RebuildParameter),
                [tensor @ Value::Tensor(_), Value::Bool, Value::Dict(_)],
            ) => {
                let tensor = *tensor;
                self.push(tensor)
            }
            (Value::Global(global), _) => {
                Err(self.bad(format!("{global} with other arguments than PyTorch writes")))
            }
            _ => Err(self.bad("a call of something that cannot be called")),
        }
    }

    fn dims(&self, tuple: Value<'a>) -> Option<Vec<u64>> {
        let values = self.elements_of(tuple).filter(|dims| dims.len() <= Tensor::MOST_DIMS)?;
        let dim = |value: &Value<'_>| match value {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        values.iter().map(dim).collect()
    }

    /// An `OrderedDict` has attributes (`_metadata`: versions of modules), which do not matter.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.top()? {
            Value::Dict(_) => Ok(()),
            _ => Err(self.refuse("the pickle opcode BUILD on something else than a dictionary".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(program: &[u8]) -> Result<Vec<Pickled>> {
        parse_pickle(program, Path::new("x.bin"))
    }

    #[test]
    fn pickles_that_call_anything_are_refused_by_name() {
        for (program, name) in [
            (&b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R."[..], "os.system"),
            (b"\x80\x04\x8C\x08builtins\x8C\x04eval\x93.", "builtins.eval"),
            (b"\x80\x02ctorch\nload\n.", "torch.load"),
            (b"\x80\x02ctorch.storage\nFloatStorage\n.", "torch.storage.FloatStorage"),
            (b"\x80\x02(S'ls'\nios\nsystem\n.", "STRING"),
            (b"\x80\x02(ios\nsystem\n.", "INST"),
            (b"\x80\x02}\x81.", "NEWOBJ"),
            (b"\x80\x02\x82\x01.", "EXT1"),
            (b"\x80\x02]}b.", "BUILD"),
            (b"\x80\x01}.", "protocol 1"),
            (b"\x80\x02\xFF.", "0xFF"),
        ] {
            let e = parse(program).unwrap_err();
            assert!(matches!(&e, Error::Unsupported { .. }) && e.to_string().contains(name), "{e}");
        }
    }

    #[test]
    fn broken_programs_are_errors_with_their_place() {
        for program in [
            &b""[..],
            b"\x80\x02",
            b"\x80\x02.",
            b"\x80\x02).",
            b"\x80\x02K\x01.",
            b"\x80\x02}}(N.u.",
            b"\x80\x02N(0.",
            b"\x80\x02N(R.",
            b"\x80\x02t.",
            b"\x80\x02N(\x85u.",
            b"\x80\x02}Ns.",
            b"\x80\x02)NNs.",
            b"\x80\x02}(Nu.",
            b"\x80\x02}NNs.",
            b"\x80\x02h\x00.",
            b"\x80\x02q\x00.",
            b"\x80\x02}(X\xFF\xFF\xFF\xFFa.",
            b"\x80\x02X\x01\0\0\0\xFF.",
            b"\x80\x02\x8A\xFF\x01.",
            b"\x80\x02\x8A\x09123456789.",
            b"\x80\x02cno newline",
            b"\x80\x02NQ.",
            b"\x80\x02N)R.",
            b"\x80\x02)Na.",
            b"\x80\x02ccollections\nOrderedDict\nN\x85R.",
        ] {
            let e = parse(program).unwrap_err().to_string();
            assert!(e.contains("data.pkl") || e.contains("POP"), "{e}");
        }
        assert_eq!(parse(b"\x80\x02}.").unwrap(), []);
        assert_eq!(parse(b"\x80\x02ccollections\nOrderedDict\n)R.").unwrap(), []);
    }
}
