"""What is measured of a network: activations by hooks, spectra and the measures of these, how they turn, and rows.

`capture` takes what layers put out; `views` say how that becomes matrices; `grams` and `spectra` reduce these;
`measures` are functions of spectra, and `rows` what is stored of both; `velocity` and `directions` compare a
measurement with earlier ones; `deletions` are for errors; `coarse` is what is too dear for every measurement;
`evaluate` is loss and accuracy; `record` asks for all of it while a pack trains, and hands on the rows.
"""
