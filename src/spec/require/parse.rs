//! From tokens to a checked tree. `||` binds least, then `&&`, then `!`, then comparisons.

use super::lex::{Placed, Token, tokens};
use super::{
    Comparison, FACTS, Fact, Literal, MAX_DEPTH, MAX_LENGTH, Node, Operand, RequireError,
    Requirement, Type, What, column,
};
use crate::base::text;

pub(super) fn parse(text: &str) -> Result<Requirement, RequireError> {
    if text.len() > MAX_LENGTH {
        return Err(RequireError {
            column: 1,
            message: format!("a requirement may be {MAX_LENGTH} bytes long"),
            suggestion: None,
        });
    }
    let tokens = tokens(text)?;
    let mut parser = Parser { text, tokens: &tokens, at: 0 };
    if tokens.is_empty() {
        let hint = Some("write for example gpu.memory >= 80GiB, or leave it out".to_owned());
        return Err(parser.wrong(0, "it is empty".to_owned(), hint));
    }
    let root = parser.either(0)?;
    match tokens.get(parser.at) {
        None => Ok(Requirement { text: text.to_owned(), root }),
        Some(more) => {
            let hint = matches!(more.token, Token::Name(_) | Token::Literal(_))
                .then(|| "join parts with `&&` or `||`".to_owned());
            let message = format!("{} is one too many here", more.token.shown());
            Err(parser.wrong(more.from, message, hint))
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    tokens: &'a [Placed],
    at: usize,
}

impl<'a> Parser<'a> {
    fn wrong(&self, at: usize, message: String, suggestion: Option<String>) -> RequireError {
        RequireError { column: column(self.text, at), message, suggestion }
    }

    fn peek(&self) -> Option<&'a Placed> {
        self.tokens.get(self.at)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let is = matches!(self.peek(), Some(Placed { token: Token::Sign(s), .. }) if *s == sign);
        self.at += usize::from(is);
        is
    }

    fn next_operand_missing(&self, wanted: &str) -> RequireError {
        match self.peek() {
            Some(p) => {
                self.wrong(p.from, format!("{wanted} was expected, not {}", p.token.shown()), None)
            }
            None => self.wrong(self.text.len(), format!("{wanted} is missing at the end"), None),
        }
    }

    fn either(&mut self, depth: usize) -> Result<Node, RequireError> {
        let mut left = self.both(depth)?;
        while self.take_sign("||") {
            let right = self.both(depth)?;
            let (from, to) = (left.from, right.to);
            left = Node { from, to, what: What::Or(Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }

    fn both(&mut self, depth: usize) -> Result<Node, RequireError> {
        let mut left = self.one(depth)?;
        while self.take_sign("&&") {
            let right = self.one(depth)?;
            let (from, to) = (left.from, right.to);
            left = Node { from, to, what: What::And(Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }

    fn one(&mut self, depth: usize) -> Result<Node, RequireError> {
        let from = self.peek().map_or(self.text.len(), |p| p.from);
        if depth > MAX_DEPTH {
            return Err(self.wrong(from, format!("nested deeper than {MAX_DEPTH}"), None));
        }
        if self.take_sign("!") {
            let inner = self.one(depth + 1)?;
            return Ok(Node { from, to: inner.to, what: What::Not(Box::new(inner)) });
        }
        if self.take_sign("(") {
            let inner = self.either(depth + 1)?;
            let Some(end) = self.peek().map(|p| p.to) else {
                return Err(self.wrong(from, "this parenthesis is never closed".to_owned(), None));
            };
            if !self.take_sign(")") {
                return Err(self.next_operand_missing("`)`"));
            }
            return Ok(Node { from, to: end, what: inner.what });
        }
        self.comparison(from)
    }

    fn comparison(&mut self, from: usize) -> Result<Node, RequireError> {
        let (left, left_end) = self.operand()?;
        if let Some(Placed { token: Token::In, .. }) = self.peek() {
            self.at += 1;
            return self.list(left, from);
        }
        let how = match self.peek().map(|p| &p.token) {
            Some(Token::Sign("==")) => Comparison::Equal,
            Some(Token::Sign("!=")) => Comparison::NotEqual,
            Some(Token::Sign("<")) => Comparison::Less,
            Some(Token::Sign("<=")) => Comparison::AtMost,
            Some(Token::Sign(">")) => Comparison::Greater,
            Some(Token::Sign(">=")) => Comparison::AtLeast,
            _ if left.kind() == Type::Bool => {
                return Ok(Node { from, to: left_end, what: What::Is(left) });
            }
            _ => {
                let message = format!("{} must be compared with something", left.kind());
                let hint = Some("for example gpu.memory >= 80GiB".to_owned());
                return Err(self.wrong(left_end, message, hint));
            }
        };
        let sign = self.peek().map_or(from, |p| p.from);
        self.at += 1;
        let right_from = self.peek().map_or(self.text.len(), |p| p.from);
        let (right, to) = self.operand()?;
        self.same(&left, &right, right_from)?;
        let ordered = matches!(left.kind(), Type::Size | Type::Number);
        if !ordered && !matches!(how, Comparison::Equal | Comparison::NotEqual) {
            let message = format!("{} has no order; compare with == or !=", left.kind());
            return Err(self.wrong(sign, message, None));
        }
        Ok(Node { from, to, what: What::Compare { left, how, right } })
    }

    fn same(&self, left: &Operand, right: &Operand, at: usize) -> Result<(), RequireError> {
        if left.kind() == right.kind() {
            return Ok(());
        }
        let name = |o: &Operand| match o {
            Operand::Fact(fact) => format!("`{fact}` is {}", fact.kind()),
            Operand::Literal(l) => format!("{} is {}", Token::Literal(l.clone()).shown(), l.kind()),
        };
        let hint = match (left.kind(), right) {
            (Type::Size, Operand::Literal(Literal::Number(n))) => {
                Some(format!("write a unit: {n}GiB"))
            }
            (Type::Text, Operand::Literal(Literal::Number(n))) => Some(format!("write '{n}'")),
            (Type::Text, Operand::Literal(Literal::Bool(n))) => Some(format!("write '{n}'")),
            _ => None,
        };
        Err(self.wrong(at, format!("{}, but {}", name(left), name(right)), hint))
    }

    fn list(&mut self, left: Operand, from: usize) -> Result<Node, RequireError> {
        let Operand::Fact(fact) = left else {
            return Err(self.wrong(from, "a fact must stand before `in`".to_owned(), None));
        };
        if !self.take_sign("[") {
            return Err(self.next_operand_missing("`[`"));
        }
        let mut list = Vec::new();
        loop {
            let at = self.peek().map_or(self.text.len(), |p| p.from);
            let (item, _) = self.operand()?;
            self.same(&Operand::Fact(fact.clone()), &item, at)?;
            let Operand::Literal(literal) = item else {
                return Err(self.wrong(at, "a list holds constants only".to_owned(), None));
            };
            list.push(literal);
            let to = self.peek().map_or(self.text.len(), |p| p.to);
            if self.take_sign("]") {
                return Ok(Node { from, to, what: What::In { fact, list } });
            }
            if !self.take_sign(",") {
                return Err(self.next_operand_missing("`,` or `]`"));
            }
        }
    }

    fn operand(&mut self) -> Result<(Operand, usize), RequireError> {
        let operand = match self.peek() {
            Some(Placed { token: Token::Literal(literal), .. }) => {
                Operand::Literal(literal.clone())
            }
            Some(Placed { token: Token::Name(name), from, .. }) => {
                Operand::Fact(self.fact(name, *from)?)
            }
            _ => return Err(self.next_operand_missing("a fact or a value")),
        };
        let to = self.peek().map_or(self.text.len(), |p| p.to);
        self.at += 1;
        Ok((operand, to))
    }

    fn fact(&self, name: &str, at: usize) -> Result<Fact, RequireError> {
        if let Some((_, fact)) = FACTS.iter().find(|(known, _)| *known == name) {
            return Ok(fact.clone());
        }
        if let Some(key) = name.strip_prefix("host.").filter(|key| !key.is_empty()) {
            return Ok(Fact::Label(key.to_owned()));
        }
        let known = FACTS.iter().map(|(name, _)| *name);
        let suggestion = text::nearest(name, known.clone()).map_or_else(
            || format!("there are {}, and host.LABEL", known.collect::<Vec<_>>().join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        let message = format!("there is no fact `{}`", text::clean(name, 60));
        Err(self.wrong(at, message, Some(suggestion)))
    }
}
