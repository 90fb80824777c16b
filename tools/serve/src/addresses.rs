//! All addresses, once: where a request goes, and what `GET /openapi.json` says of it. The schema of a body is derived from the type that the handler
//! takes, so that the two cannot differ.

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    handler::Handler,
    routing::{MethodRouter, delete, get, post},
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{asked::Asked, server::Shared};

/// What a reply is when all is well.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    media: &'static [&'static str],
    /// What its JSON is.
    kind: &'static str,
}

/// An object.
pub const JSON: Reply = Reply { media: &["application/json"], kind: "object" };
/// A list.
pub const LIST: Reply = Reply { kind: "array", ..JSON };
/// An object, or events where the client wants the answer as it comes.
pub const EVENTS: Reply = Reply { media: &["application/json", "text/event-stream"], ..JSON };
/// An object, or one a line where the client wants the answer as it comes.
pub const LINES: Reply = Reply { media: &["application/json", "application/x-ndjson"], ..JSON };
/// A text.
pub const TEXT: Reply = Reply { media: &["text/plain"], ..JSON };

/// The arguments of a handler that reads a body.
pub trait Body {
    /// What is read.
    type Body: JsonSchema;
}

impl<M, T: JsonSchema> Body for (M, Asked<T>) {
    type Body = T;
}

impl<M, T: JsonSchema> Body for (M, State<Shared>, Asked<T>) {
    type Body = T;
}

impl<M, T: JsonSchema> Body for (M, State<Shared>, Path<String>, RawQuery, Asked<T>) {
    type Body = T;
}

/// Addresses, as they are told of one after the other.
pub struct Addresses {
    router: Router<Shared>,
    paths: Map<String, Value>,
    schemas: SchemaGenerator,
}

impl Addresses {
    /// None yet.
    pub fn new() -> Self {
        let settings = |settings: &mut SchemaSettings| {
            settings.meta_schema = None;
            settings.definitions_path = "/components/schemas".into();
        };
        let schemas = SchemaSettings::draft2020_12().with(settings).into_generator();
        Self { router: Router::new(), paths: Map::new(), schemas }
    }

    /// `POST` of a body to `path`.
    pub fn post<T, H>(mut self, path: &str, what: &str, reply: Reply, handler: H) -> Self
    where
        T: Body + 'static,
        H: Handler<T, Shared>,
    {
        let schema = self.schemas.subschema_for::<T::Body>();
        let body = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        self.add(path, "post", what, reply, Some(body), post(handler))
    }

    /// `GET` of `path`.
    pub fn get<T: 'static, H: Handler<T, Shared>>(
        self,
        path: &str,
        what: &str,
        reply: Reply,
        handler: H,
    ) -> Self {
        self.add(path, "get", what, reply, None, get(handler))
    }

    /// `DELETE` of `path`.
    pub fn delete<T: 'static, H: Handler<T, Shared>>(self, path: &str, what: &str, handler: H) -> Self {
        self.add(path, "delete", what, JSON, None, delete(handler))
    }

    fn add(
        mut self,
        path: &str,
        method: &str,
        what: &str,
        reply: Reply,
        body: Option<Value>,
        route: MethodRouter<Shared>,
    ) -> Self {
        let content = |media: &&str| match *media {
            media @ "application/json" => (media.to_owned(), json!({ "schema": { "type": reply.kind } })),
            media => (media.to_owned(), json!({})),
        };
        let content: Map<String, Value> = reply.media.iter().map(content).collect();
        let mut operation = json!({
            "summary": what,
            "responses": {
                "200": { "description": "What was asked for.", "content": content },
                "default": { "$ref": "#/components/responses/problem" },
            },
        });
        if let Some(body) = body {
            operation["requestBody"] = body;
        }
        // A name in braces is a part of the address; with a star it may have slashes.
        let shown = path.replace("{*", "{");
        if let Some(name) = shown.split(['{', '}']).nth(1) {
            let parameter = json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } });
            operation["parameters"] = json!([parameter]);
        }
        let entry = self.paths.entry(shown).or_insert_with(|| json!({}));
        entry[method] = operation;
        self.router = self.router.route(path, route);
        self
    }

    /// Where requests go, the document among them.
    pub fn router(mut self) -> Router<Shared> {
        let error = json!({ "description": "What is wrong, and what can be done.", "content": { "application/json": {
            "schema": { "type": "object" } } } });
        let document = json!({
            "openapi": "3.1.0",
            "info": { "title": "yuan serve", "version": yuan::VERSION, "description": "A Yuan model over HTTP." },
            "security": [{}, { "bearer": [] }, { "key": [] }],
            "paths": self.paths,
            "components": {
                "schemas": self.schemas.take_definitions(true),
                "responses": { "problem": error },
                "securitySchemes": {
                    "bearer": { "type": "http", "scheme": "bearer" },
                    "key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
                },
            },
        });
        self.router.route("/openapi.json", get(async move || Json(document)))
    }
}
