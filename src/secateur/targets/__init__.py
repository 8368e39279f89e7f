'''Runtimes on which a model is measured.

A target is a value: a `secateur.types.Target` with a name and one function,
``(model, example, threads) -> Artefact``. A new runtime is one file of one's own::

    import torch
    from secateur.export.prepare import array, batch_of, output_tensors, snapshot
    from secateur.calling import as_call
    from secateur.types import Artefact, Target


    def build(model, example, threads):
        """Make the model ready: export, compile, load. Nothing here is timed."""
        args, kwargs = as_call(example)
        compiled = torch.jit.trace(snapshot(model), args)

        def call(other):
            """Run it on another example; return numpy arrays."""
            with torch.inference_mode():
                return [array(t) for t in output_tensors(compiled(*as_call(other)[0]))]

        return Artefact(
            run=lambda: call(example),  # what is timed: returns only when the result is there
            call=call,
            nbytes=None,  # size of the file, where there is one
            target="script",
            threads=threads,
            batch=batch_of(example),
        )


    script = Target("script", build, threads=1)

It then works wherever `secateur.targets.eager.eager` does:
``measure_models(script, [dense, small], example)``, ``sc.latency(model, example, script)``,
and ``--target mymodule:script`` on the command line. An import that may be missing belongs inside ``build``;
`secateur.export.prepare.need` gives the error that names the extra.
'''
