//! All addresses, once: where a request goes, and what `GET /openapi.json` says of it. The schemas of a body and of a reply are derived from the types
//! that handlers take and write. Events and lines have none: OpenAPI has no words for them.

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    handler::Handler,
    routing::{MethodRouter, delete, get, post},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{asked::Asked, dialect::Dialect, server::Shared};

/// What a reply is when all is well.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    json: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// What else it may be.
    other: Option<&'static str>,
}

impl Reply {
    /// JSON of a type.
    pub fn of<T: JsonSchema>() -> Self {
        Self { json: Some(SchemaGenerator::subschema_for::<T>), other: None }
    }

    /// A text.
    pub const TEXT: Self = Self { json: None, other: Some("text/plain") };

    /// Or events, where the client wants the answer as it comes.
    pub fn or_events(self) -> Self {
        Self { other: Some("text/event-stream"), ..self }
    }

    /// Or one JSON a line, where the client wants the answer as it comes.
    pub fn or_lines(self) -> Self {
        Self { other: Some("application/x-ndjson"), ..self }
    }

    fn content(self, schemas: &mut SchemaGenerator) -> Map<String, Value> {
        let json = self.json.map(|schema| ("application/json", json!({ "schema": schema(schemas) })));
        let other = self.other.map(|media| (media, json!({})));
        json.into_iter().chain(other).map(|(media, content)| (media.to_owned(), content)).collect()
    }
}

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
    pub fn delete<T: 'static, H: Handler<T, Shared>>(
        self,
        path: &str,
        what: &str,
        reply: Reply,
        handler: H,
    ) -> Self {
        self.add(path, "delete", what, reply, None, delete(handler))
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
        let content = reply.content(&mut self.schemas);
        let failure =
            json!({ "application/json": { "schema": Dialect::of(path).schema(&mut self.schemas) } });
        let mut operation = json!({
            "summary": what,
            "responses": {
                "200": { "description": "What was asked for.", "content": content },
                "default": { "description": "What is wrong, and what can be done.", "content": failure },
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
        let document = json!({
            "openapi": "3.1.0",
            "info": { "title": "yuan serve", "version": yuan::VERSION, "description": "A Yuan model over HTTP." },
            "security": [{}, { "bearer": [] }, { "key": [] }],
            "paths": self.paths,
            "components": {
                "schemas": self.schemas.take_definitions(true),
                "securitySchemes": {
                    "bearer": { "type": "http", "scheme": "bearer" },
                    "key": { "type": "apiKey", "in": "header", "name": "x-api-key" },
                },
            },
        });
        self.router.route("/openapi.json", get(async move || Json(document)))
    }
}
