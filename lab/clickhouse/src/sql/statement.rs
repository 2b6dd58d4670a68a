//! What a statement is, and where its data begins.
//!
//! ```text
//!  INSERT INTO t (a, b) FORMAT RowBinary SETTINGS x = 1 ⏎ data…
//!  └──────head────────┘        format    settings         └─data
//!  INSERT INTO t SELECT … FROM input('a UInt8') WHERE … FORMAT RowBinary ⏎ data…
//!  └─────────────────head──────input───────────────────┘
//! ```
//!
//! The grammar makes a clause of FORMAT and VALUES only where an expression or a name has ended, so
//! a column, a table or a string of that name is not taken for one. The first such clause counts:
//! behind it there is only data.

use std::ops::Range;

use super::lexer::{Lexer, Token, TokenKind};
use crate::exception::{Exception, exception};

/// `name = literal`, the literal as SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: String,
    pub(crate) literal: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Statement {
    /// Anything the engine runs as it stands. The format is that of its FORMAT clause.
    Query { format: Option<String> },
    /// An INSERT with a FORMAT or VALUES clause.
    Insert(Insert),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Insert {
    /// Where the statement proper ends.
    head: usize,
    pub(crate) data: usize,
    pub(crate) format: String,
    /// Those that stand between FORMAT and the data.
    pub(crate) settings: Vec<Setting>,
    pub(crate) source: Source,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The rows are the data.
    Data,
    /// The rows are what a SELECT makes of the data.
    Input(Input),
    /// The rows are a SELECT's; data is of no use to it.
    Select,
}

/// A call of `input('structure')`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Input {
    call: Range<usize>,
    structure: Range<usize>,
}

impl Statement {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Exception> {
        Parser {
            text,
            lexer: Lexer::new(text, 0),
            before: None,
            depth: 0,
            selects: false,
            input: None,
        }
        .statement()
    }
}

impl Insert {
    /// The statement without its FORMAT clause and data.
    pub(crate) fn head<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        &text[..self.head]
    }

    /// The statement with `file(…)` in place of `input(…)`.
    pub(crate) fn reading_file(&self, text: &[u8], input: &Input, path: &str) -> Vec<u8> {
        let call = format!("file({}, {}, ", super::literal(path), super::literal(&self.format));
        let mut sql = Vec::with_capacity(self.head + call.len());
        sql.extend_from_slice(&text[..input.call.start]);
        sql.extend_from_slice(call.as_bytes());
        sql.extend_from_slice(&text[input.structure.clone()]);
        sql.push(b')');
        sql.extend_from_slice(&text[input.call.end..self.head]);
        sql
    }
}

struct Parser<'a> {
    text: &'a [u8],
    lexer: Lexer<'a>,
    /// The token before the one at hand.
    before: Option<Token>,
    depth: usize,
    selects: bool,
    input: Option<Input>,
}

impl Parser<'_> {
    fn statement(mut self) -> Result<Statement, Exception> {
        let mut inserts = false;
        let mut with = false;
        let mut format = None;
        while let Some(token) = self.lexer.next() {
            match token.kind {
                TokenKind::Punctuation(b'(' | b'[' | b'{') => self.depth += 1,
                TokenKind::Punctuation(b')' | b']' | b'}') => {
                    self.depth = self.depth.saturating_sub(1)
                }
                TokenKind::Punctuation(b';') if self.depth == 0 => {
                    self.nothing_follows()?;
                    break;
                }
                TokenKind::Word if self.before.is_none() => {
                    inserts = self.is(&token, "INSERT");
                    with = self.is(&token, "WITH");
                }
                TokenKind::Word if with && self.depth == 0 && self.is(&token, "INSERT") => {
                    inserts = true
                }
                TokenKind::Word if inserts => {
                    if let Some(insert) = self.insert_word(&token)? {
                        return Ok(Statement::Insert(insert));
                    }
                }
                TokenKind::Word
                    if self.depth == 0 && self.is(&token, "FORMAT") && self.clause_may_begin() =>
                {
                    format = self.format_name().map(|name| self.string(&name)).or(format);
                }
                _ => {}
            }
            self.before = Some(token);
        }
        if self.input.is_some() {
            return Err(exception!(
                INVALID_USAGE_OF_INPUT,
                "FORMAT must be specified for function input()"
            ));
        }
        Ok(Statement::Query { format })
    }

    /// A word of an INSERT: a clause that ends the statement proper, or something to remember.
    fn insert_word(&mut self, token: &Token) -> Result<Option<Insert>, Exception> {
        if self.is(token, "SELECT") {
            self.selects = true;
        } else if self.is(token, "INPUT") {
            self.input_call(token)?;
        } else if self.depth == 0 && self.clause_may_begin() {
            if self.is(token, "FORMAT")
                && let Some(name) = self.format_name()
            {
                return self.insert_format(token.span.start, &name).map(Some);
            }
            if self.is(token, "VALUES") && !self.selects {
                return Ok(Some(Insert {
                    head: token.span.start,
                    data: token.span.end,
                    format: "Values".to_owned(),
                    settings: Vec::new(),
                    source: Source::Data,
                }));
            }
        }
        Ok(None)
    }

    /// `INSERT … FORMAT name [SETTINGS …]`, with the blanks that part it from the data.
    fn insert_format(&mut self, head: usize, name: &Token) -> Result<Insert, Exception> {
        let (settings, end) = self.trailing_settings(name.span.end)?;
        let source = match self.input.take() {
            Some(input) => Source::Input(input),
            None if self.selects => Source::Select,
            None => Source::Data,
        };
        Ok(Insert { head, data: self.data_start(end), format: self.string(name), settings, source })
    }

    /// The name in a FORMAT clause, when the word FORMAT begins one.
    fn format_name(&self) -> Option<Token> {
        let at = self.lexer.position();
        let name = Lexer::new(self.text, at).next()?;
        (name.kind == TokenKind::Word
            && !self.is_any(&name, &["FROM", "AS", "IN", "LIKE", "IS", "AND", "OR"]))
        .then_some(name)
    }

    /// Whether the token before ends an expression, a name or a clause, so that another clause may
    /// begin.
    fn clause_may_begin(&self) -> bool {
        const EXPECTING: &[&str] = &[
            "INTO", "TABLE", "FUNCTION", "SELECT", "DISTINCT", "AS", "BY", "WHERE", "PREWHERE",
            "HAVING", "ON", "AND", "OR", "NOT", "IN", "LIKE", "FROM", "JOIN", "LIMIT", "OFFSET",
            "WITH", "BETWEEN", "CASE", "WHEN", "THEN", "ELSE", "UNION",
        ];
        let Some(before) = &self.before else { return false };
        match before.kind {
            TokenKind::Punctuation(byte) => matches!(byte, b')' | b']' | b'}' | b'*'),
            TokenKind::Word => !self.is_any(before, EXPECTING),
            TokenKind::QuotedIdentifier | TokenKind::String | TokenKind::Number => true,
        }
    }

    /// Remembers `input(structure)`. A column named so, or a function of a name that ends so, is
    /// none.
    fn input_call(&mut self, word: &Token) -> Result<(), Exception> {
        let reads_from = match &self.before {
            Some(Token { kind: TokenKind::Punctuation(b','), .. }) => true,
            Some(before) => self.is_any(before, &["FROM", "JOIN"]),
            None => false,
        };
        let mut lexer = Lexer::new(self.text, word.span.end);
        let opening = lexer.next().filter(|token| token.kind == TokenKind::Punctuation(b'('));
        let (true, Some(opening)) = (reads_from, opening) else { return Ok(()) };
        if self.input.is_some() {
            return Err(exception!(
                INVALID_USAGE_OF_INPUT,
                "You can use function input() only once per query"
            ));
        }
        let mut depth = 0_usize;
        for token in lexer {
            match token.kind {
                TokenKind::Punctuation(b'(') => depth += 1,
                TokenKind::Punctuation(b')') if depth == 0 => {
                    self.input = Some(Input {
                        call: word.span.start..token.span.end,
                        structure: opening.span.end..token.span.start,
                    });
                    return Ok(());
                }
                TokenKind::Punctuation(b')') => depth -= 1,
                _ => {}
            }
        }
        Err(exception!(SYNTAX_ERROR, "Unmatched parenthesis after input"))
    }

    /// `SETTINGS name = literal, …` from `at` on, and where it ends; none, and `at`, when there is
    /// no such clause.
    fn trailing_settings(&self, at: usize) -> Result<(Vec<Setting>, usize), Exception> {
        let mut lexer = Lexer::new(self.text, at);
        let mut settings = Vec::new();
        if !lexer
            .next()
            .is_some_and(|token| token.kind == TokenKind::Word && self.is(&token, "SETTINGS"))
        {
            return Ok((settings, at));
        }
        loop {
            let name = lexer.next().filter(|token| {
                matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier)
            });
            let equals = lexer.next().filter(|token| token.kind == TokenKind::Punctuation(b'='));
            let (Some(name), Some(_)) = (name, equals) else {
                return Err(exception!(
                    SYNTAX_ERROR,
                    "Expected a list of name = value after SETTINGS"
                ));
            };
            let value = literal(&mut lexer).ok_or_else(|| {
                let name = self.string(&name);
                exception!(SYNTAX_ERROR, "Expected a literal for setting {name}")
            })?;
            let end = value.end;
            settings.push(Setting {
                name: self.string(&name).trim_matches(['`', '"']).to_owned(),
                literal: String::from_utf8_lossy(&self.text[value]).into_owned(),
            });
            match lexer.next() {
                Some(Token { kind: TokenKind::Punctuation(b','), .. }) => {}
                _ => return Ok((settings, end)),
            }
        }
    }

    /// Data begins behind the blanks after the clause, and one line end at most.
    fn data_start(&self, mut at: usize) -> usize {
        while self.text.get(at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | 0x0c)) {
            at += 1;
        }
        for end in [b'\r', b'\n'] {
            if self.text.get(at) == Some(&end) {
                at += 1;
            }
        }
        at
    }

    fn nothing_follows(&mut self) -> Result<(), Exception> {
        match self.lexer.find(|token| token.kind != TokenKind::Punctuation(b';')) {
            None => Ok(()),
            Some(token) => Err(exception!(
                SYNTAX_ERROR,
                "Syntax error (Multi-statements are not allowed): failed at position {}",
                token.span.start + 1
            )),
        }
    }

    fn is(&self, token: &Token, keyword: &str) -> bool {
        self.text[token.span.clone()].eq_ignore_ascii_case(keyword.as_bytes())
    }

    fn is_any(&self, token: &Token, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(token, keyword))
    }

    fn string(&self, token: &Token) -> String {
        String::from_utf8_lossy(&self.text[token.span.clone()]).into_owned()
    }
}

/// One literal: a number with or without its sign, a string, a word, or a bracketed group.
fn literal(lexer: &mut Lexer<'_>) -> Option<Range<usize>> {
    let first = lexer.next()?;
    let start = first.span.start;
    match first.kind {
        TokenKind::Word | TokenKind::String | TokenKind::Number => Some(first.span),
        TokenKind::Punctuation(b'-' | b'+') => {
            let number = lexer.next().filter(|token| token.kind == TokenKind::Number)?;
            Some(start..number.span.end)
        }
        TokenKind::Punctuation(b'(' | b'[' | b'{') => {
            let mut depth = 1_usize;
            lexer.find_map(|token| {
                match token.kind {
                    TokenKind::Punctuation(b'(' | b'[' | b'{') => depth += 1,
                    TokenKind::Punctuation(b')' | b']' | b'}') => depth -= 1,
                    _ => {}
                }
                (depth == 0).then_some(start..token.span.end)
            })
        }
        TokenKind::QuotedIdentifier | TokenKind::Punctuation(_) => None,
    }
}

#[cfg(test)]
mod tests;
